"""A report's charts of time and memory, as SVG."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanstore.benchmarking.report import BenchmarkReport
from wanstore.benchmarking.rows import PHASES, BenchmarkRow, phase_seconds
from wanstore.benchmarking.safe import MEMORY_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"text encoding": "#8a94a6", "denoising": "#f08c00", "decoding": "#1c7ed6", "writing": "#2f9e44"}
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
    figure, ax = _canvas([row.preset.name for row in report.rows])
    for place, row in enumerate(report.rows):
        end, text = 0.0, row.status
        if row.worked:
            text = f"{'≈ ' if row.extrapolated else ''}{row.seconds_p50:.1f} s, {row.step_seconds:.2f} s a step"
            seconds = phase_seconds(row)
            for phase in PHASES:
                ax.barh(place, seconds[phase], left=end, height=0.62, color=COLORS[phase])
                end += seconds[phase]
        ax.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center", color=TEXT_COLOR)
    ax.set_xlim(0, ax.get_xlim()[1] * 1.4)  # for the text beside the longest bar
    _finish(figure, ax, "seconds a clip, by phase", {phase: COLORS[phase] for phase in PHASES}, target)


def _draw_memory(report: BenchmarkReport, target: Path) -> None:
    figure, ax = _canvas([f"{row.preset.name}\n{_peak(row)}" for row in report.rows])
    for place, row in enumerate(report.rows):
        if row.memory:
            ax.barh(place, row.memory.device_gib or 0.0, height=0.62, color=COLORS["text encoding"], alpha=0.5)
            ax.barh(place, row.memory.allocated_gib, height=0.62, color=COLORS["denoising"])
    device, cap = report.environment.memory_gib, report.environment.memory_cap_gib
    total = device if cap is None else cap
    safe = MEMORY_SHARE * total
    limits = [(safe, f"safe up to {safe:.1f}", "right", True)]
    limits += [] if cap is None else [(cap, f"held to {cap:g}", "left", False)]
    limits.append((device, f"the device's {device:.1f}", "right" if cap is None else "left", False))
    # The axis fits the bars: a limit far beyond them is named below it instead of stretching it.
    end = 1.25 * max(max(row.memory.allocated_gib, row.memory.device_gib or 0.0) for row in report.rows if row.memory)
    for gib, text, side, dashed in limits:
        if gib <= end:
            _limit(ax, gib, text, side, dashed=dashed)
    ax.set_xlim(0, end)
    beyond = ", ".join(text for gib, text, _, _ in limits if gib > end)
    keys = {"handed out by torch": COLORS["denoising"], "in use on the device": COLORS["text encoding"]}
    label = f"peak memory, GiB (beyond the axis: {beyond})" if beyond else "peak memory, GiB"
    _finish(figure, ax, label, keys, target)


def _peak(row: BenchmarkRow) -> str:
    peak = f"{row.memory.allocated_gib:.1f} GiB" if row.memory else ""
    return peak if row.worked else row.status


def _canvas(names: list[str]) -> tuple[Figure, Axes]:
    """Axes with a line for each name, from the top. pyplot is not used: its global state is the caller's."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 0.45 * len(names) + 1.3), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.25)  # a reader's fonts may be wider than those that the layout is made with
    FigureCanvasSVG(figure)
    ax = figure.subplots()
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return figure, ax


def _limit(ax: Axes, gib: float, text: str, side: str, *, dashed: bool = False) -> None:
    """A line down the chart, and above it what it is, on that side of the line's end."""
    ax.axvline(gib, color=LIMIT_COLOR, linestyle=":" if dashed else "-", linewidth=1.3)
    ax.annotate(
        text, (gib, 1), (-2 if side == "right" else 2, 3), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha=side, va="bottom", color=LIMIT_COLOR, fontsize=8.5,
    )  # fmt: skip


def _finish(figure: Figure, ax: Axes, label: str, keys: dict[str, str], target: Path) -> None:
    """The same looks for all charts, and the same bytes for the same report."""
    import matplotlib as mpl
    from matplotlib.patches import Patch

    ax.set_xlabel(label, color=TEXT_COLOR)
    ax.tick_params(colors=TEXT_COLOR, length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(TEXT_COLOR)
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in keys.items()], loc="outside upper center",
        ncols=len(keys), frameon=False, labelcolor=TEXT_COLOR,
    )  # fmt: skip
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": target.name}):
        figure.savefig(target, transparent=True, metadata={"Date": None})
