"""A report as people read it: Markdown with tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wanstore.benchmarking.report import BenchmarkReport, BenchmarkRow

_HEAD = "| preset | size | frames | steps | s, p50 | s, p95 | s a step | peak memory GiB | |"


def summary(report: BenchmarkReport) -> str:
    """The table of presets, and the safe one with its reasons."""
    lines = [f"Measured on {report.environment.device}.", "", _HEAD, "| --- " * 9 + "|"]
    lines += [_line(row) for row in report.rows]
    safe = report.safe
    lines += ["", f"Safe preset: **{safe.preset or 'none'}**", "", *(f"- {reason}" for reason in safe.reasons), ""]
    return "\n".join(lines)


def _line(row: BenchmarkRow) -> str:
    preset = row.preset
    head = f"| {preset.name} | {preset.width}×{preset.height} | {preset.frames} | {preset.steps} "
    if not row.worked:
        return f"{head}| — | — | — | — | {row.status}: {row.reason} |"
    memory = f"{row.memory.allocated_gib:.2f}" if row.memory else "—"
    note = "extrapolated; " if row.extrapolated else ""
    return (
        f"{head}| {row.seconds_p50:.2f} | {row.seconds_p95:.2f} | {row.step_seconds:.3f} | {memory} "
        f"| {note}{preset.notes} |"
    )
