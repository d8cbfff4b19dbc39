"""A report's charts of time and memory, as SVG."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from wanstore.benchmarking.report import BenchmarkReport, BenchmarkRow
from wanstore.benchmarking.safe import MEMORY_SHARE
from wanstore.benchmarking.stages import STAGES, stage_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"text": "#8a94a6", "denoising": "#f08c00", "decoding": "#1c7ed6", "writing": "#2f9e44"}
TEXT_COLOR = "#7a8290"
"""Readable on white and on black."""
LIMIT_COLOR = "#e03131"


def draw(report: BenchmarkReport, folder: Path, below: str) -> dict[str, str] | None:
    """Draws into `folder/below`. What was drawn, as paths below `folder`; None where matplotlib is not installed.

    Its keys are `time` and `memory`, where there is something to draw.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    (folder / below).mkdir(parents=True, exist_ok=True)
    drawn = {}
    if any(row.worked for row in report.rows):
        drawn["time"] = f"{below}/time.svg"
        _draw_time(report, folder / drawn["time"])
    if any(row.memory for row in report.rows):
        drawn["memory"] = f"{below}/memory.svg"
        _draw_memory(report, folder / drawn["memory"])
    return drawn


def _draw_time(report: BenchmarkReport, target: Path) -> None:
    figure, ax = _canvas(len(report.rows))
    for place, row in enumerate(report.rows):
        if not row.worked:
            _say(ax, 0, place, row.status)
            continue
        left = 0.0
        for stage in STAGES:
            seconds = stage_seconds(row)[stage]
            ax.barh(place, seconds, left=left, height=0.62, color=COLORS[stage], label=stage if not left else None)
            left += seconds
        about = "≈ " if row.extrapolated else ""
        _say(ax, left, place, f"{about}{row.seconds_p50:.1f} s, {row.step_seconds:.2f} s a step")
    _finish(figure, ax, report.rows, "seconds a clip, by stage", [(stage, COLORS[stage]) for stage in STAGES], target)


def _draw_memory(report: BenchmarkReport, target: Path) -> None:
    figure, ax = _canvas(len(report.rows))
    for place, row in enumerate(report.rows):
        if row.memory is None:
            _say(ax, 0, place, row.status)
            continue
        widest = max(row.memory.allocated_gib, row.memory.device_gib or 0.0)
        ax.barh(place, widest, height=0.62, color=COLORS["text"], alpha=0.45)
        ax.barh(place, row.memory.allocated_gib, height=0.62, color=COLORS["denoising"])
        _say(ax, widest, place, f"{row.memory.allocated_gib:.1f} GiB" + ("" if row.worked else f", {row.status}"))
    environment = report.environment
    limits = {f"the device's {environment.memory_gib:.1f}": environment.memory_gib}
    if environment.memory_cap_gib is not None:
        limits = {f"the cap of {environment.memory_cap_gib:g}": environment.memory_cap_gib} | limits
    smallest = min(limits.values())
    ax.axvline(smallest * MEMORY_SHARE, color=LIMIT_COLOR, linestyle=":", linewidth=1.2)
    _over(ax, smallest * MEMORY_SHARE, f"safe: {MEMORY_SHARE:.0%}", "right")
    for name, gib in limits.items():
        ax.axvline(gib, color=LIMIT_COLOR, linewidth=1.4)
        _over(ax, gib, name, "left" if gib == smallest and len(limits) > 1 else "right" if len(limits) > 1 else "left")
    keys = [("handed out by torch", COLORS["denoising"]), ("in use on the device", COLORS["text"])]
    _finish(figure, ax, report.rows, "peak memory, GiB", keys, target)


def _canvas(rows: int) -> tuple[Figure, Axes]:
    """A figure of its own: pyplot's global state is the caller's."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 0.42 * rows + 1.3), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _say(ax: Axes, x: float, y: float, text: str) -> None:
    ax.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", color=TEXT_COLOR)


def _over(ax: Axes, x: float, text: str, side: str) -> None:
    ax.annotate(
        text, (x, 1), (-4 if side == "right" else 4, 3), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha=side, va="bottom", color=LIMIT_COLOR, fontsize=8.5,
    )  # fmt: skip


def _finish(
    figure: Figure, ax: Axes, rows: tuple[BenchmarkRow, ...], label: str, keys: list[tuple[str, str]], target: Path
) -> None:
    """The same looks for all charts, and the same bytes for the same report."""
    import matplotlib as mpl
    from matplotlib.patches import Patch

    ax.set_yticks(range(len(rows)), [row.preset.name for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel(label, color=TEXT_COLOR)
    ax.tick_params(colors=TEXT_COLOR, length=0)
    ax.margins(x=0.02)
    ax.set_xlim(0, ax.get_xlim()[1] * 1.22)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(TEXT_COLOR)
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in keys], loc="outside upper center", ncols=len(keys),
        frameon=False, labelcolor=TEXT_COLOR,
    )  # fmt: skip
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": target.name}):
        figure.savefig(target, transparent=True, metadata={"Date": None})
