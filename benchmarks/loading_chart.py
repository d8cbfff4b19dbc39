"""The chart of what loading.py measured.

python benchmarks/loading_chart.py loading.json docs/assets/loading.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from loaders import FILE_WAYS, PIPELINE_WAYS
from loading_tables import OURS, middle, start
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

OUR_COLOR, PEER_COLOR = "#f08c00", "#8a94a6"
TEXT_COLOR = "#7a8290"
"""Readable on white and on black."""
H2D = "pinned memory to device"
Bars = list[tuple[str, float, bool]]


def draw(found: dict[str, Any], target: Path) -> None:
    rate = found["ceilings"].get(H2D)
    ceiling = found["size_bytes"] / rate / 1e9 if isinstance(rate, float) else None
    panels = {
        "Files to GPU: all tensors are there": (_files(found), ceiling),
        "Folder to pipeline on the GPU: imports done": (_pipelines(found), ceiling),
        "Start of a process to ready": (_starts(found), None),
    }
    shown = {title: panel for title, panel in panels.items() if len(panel[0]) > 1}  # one bar compares nothing
    counts = [len(bars) for bars, _ in shown.values()]
    style = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.color": TEXT_COLOR}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(
            len(shown), figsize=(7.6, 0.31 * sum(counts) + 0.62 * len(shown)), height_ratios=counts,
            squeeze=False, layout="constrained",
        )  # fmt: skip
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.25)  # a reader's fonts may be wider
        for ax, (title, (bars, line)) in zip(axes[:, 0], shown.items(), strict=True):
            _panel(ax, title, bars, line)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, transparent=True, metadata={"Date": None})


def _files(found: dict[str, Any]) -> Bars:
    bars = [(way, middle(found, way, "warm", weights_only=True), False) for way in FILE_WAYS]
    bars.append((f"{OURS}, weights", middle(found, OURS, "warm", weights_only=True), True))
    return _quickest_first(bars)


def _pipelines(found: dict[str, Any]) -> Bars:
    bars = [(way, middle(found, way, "warm", weights_only=False), way == OURS) for way in PIPELINE_WAYS]
    return _quickest_first(bars)


def _starts(found: dict[str, Any]) -> Bars:
    return _quickest_first([(way, start(found, way, "ready"), way == OURS) for way in PIPELINE_WAYS])


def _quickest_first(bars: list[tuple[str, float | str | None, bool]]) -> Bars:
    """Those that were measured."""
    measured = [(name, seconds, ours) for name, seconds, ours in bars if isinstance(seconds, float)]
    return sorted(measured, key=lambda bar: bar[1])


def _panel(ax: Axes, title: str, bars: Bars, ceiling: float | None) -> None:
    names, seconds, ours = zip(*bars, strict=True)
    drawn = ax.barh(names, seconds, height=0.66, color=[OUR_COLOR if own else PEER_COLOR for own in ours])
    for bar, value, own in zip(drawn, seconds, ours, strict=True):
        ax.annotate(
            f"{value:.2f} s", (value, bar.get_y() + bar.get_height() / 2), (5, 0), textcoords="offset points",
            va="center", weight="bold" if own else "normal",
        )  # fmt: skip
    if ceiling is not None:
        ax.axvline(ceiling, color=TEXT_COLOR, linewidth=1, linestyle=(0, (3, 2)))
        ax.annotate(
            f"{ceiling:.2f} s: as fast as the link to the GPU is", (ceiling, 1), (0, 1),
            xycoords=ax.get_xaxis_transform(), textcoords="offset points", va="bottom", fontsize=8.5,
        )  # fmt: skip
    ax.set_title(title, loc="left", fontsize=11, weight="bold", color=TEXT_COLOR, pad=16 if ceiling else 5)
    ax.set_ylim(-0.5, len(bars) - 0.5)
    ax.set_xlim(0, max(seconds) * 1.15)
    ax.invert_yaxis()
    ax.tick_params(left=False, bottom=False, labelbottom=False, labelcolor=TEXT_COLOR)
    ax.spines[:].set_visible(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.target)
