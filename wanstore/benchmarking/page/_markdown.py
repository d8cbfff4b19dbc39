"""Markdown tables, and figures as the benchmarks' pages write them."""

from __future__ import annotations

from collections.abc import Sequence

from wanstore.benchmarking.report import Environment
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.presets import FRAMES_PER_SECOND, Preset

NONE = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; columns that begin with `#` are numbers, set to the right."""
    rules = ["---:" if name.startswith("#") else "---" for name in head]
    return [_row([name.lstrip("#") for name in head]), _row(rules), *(_row(cells) for cells in rows)]


def number(value: float | None, *, below_one: int = 3) -> str:
    """With three digits that count, and no exponent: 867, 33.5, 1.33; below 1 with that many decimals, 0.052."""
    if value is None:
        return NONE
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else below_one
    return f"{value:.{digits}f}"


def gib(value: float | None) -> str:
    """To a tenth; to a hundredth below 1."""
    return NONE if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def usd(value: float | None) -> str:
    """To a hundredth of a cent below ten cents: 0.0412, 0.312, 1.20."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def clip_of(preset: Preset) -> str:
    """Size, frames and steps: 832×480, 49 frames (3 s), 50 steps."""
    seconds = preset.frames / FRAMES_PER_SECOND
    length = f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    return f"{preset.width}×{preset.height}, {preset.frames} frames ({length}), {preset.steps} steps"


def result_of(row: BenchmarkRow) -> str:
    """`ok`, or what went wrong; says so if fewer steps were measured than the preset has."""
    if row.worked and row.extrapolated:
        return f"ok, {len(row.rounds[0].steps)} of {row.preset.steps} steps measured"
    return row.status


def spread_of(row: BenchmarkRow) -> str:
    """The quickest and the slowest clip, and p95 where there are enough of them."""
    if len(row.rounds) < 2:
        return NONE
    spread = " to ".join(number(seconds) for seconds in row.seconds_spread)
    return f"{spread}, p95 {number(row.seconds_p95)}" if row.seconds_p95 else spread


def measured_on(environment: Environment) -> str:
    """One sentence: the device, its memory, the day."""
    cap = environment.memory_cap_gib
    held = f", torch held to {cap:g} GiB" if cap is not None else ""
    return f"Measured on {environment.device} ({environment.memory_gib:.1f} GiB{held}), {environment.measured_at[:10]}."


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
