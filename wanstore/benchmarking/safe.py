"""The safe preset: what degraded mode falls back to, chosen by a pure function that gives its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from wanstore.benchmarking.report import BenchmarkRow

MEMORY_SHARE = 0.8
"""Of the smallest GPU's memory: the rest is for fragments, other prompts, and other processes."""


@attrs.frozen
class SafeChoice:
    """The preset's name, None if none qualifies; `reasons` say why it, and why not each of the others."""

    preset: str | None
    reasons: tuple[str, ...]


def choose_safe(rows: Sequence[BenchmarkRow], memory_gib: float) -> SafeChoice:
    """The cheapest preset by p95 that worked, passed all hard checks and leaves a fifth of `memory_gib` free.

    Ties are decided by memory.
    """
    reasons, fit = [], []
    for row in rows:
        why_not = _why_not(row, memory_gib)
        if why_not:
            reasons.append(f"{row.preset.name} {why_not}")
        else:
            fit.append(row)
    if not fit:
        return SafeChoice(None, tuple(reasons))
    best = min(fit, key=lambda row: (row.seconds_p95, row.memory.allocated_gib if row.memory else 0.0))
    peak = f", {best.memory.allocated_gib:.1f} of {memory_gib:.1f} GiB" if best.memory else ""
    cheapest = f"{best.preset.name} is the quickest that qualifies: {best.seconds_p95:.1f} s (p95){peak}"
    return SafeChoice(best.preset.name, (cheapest, *reasons))


def _why_not(row: BenchmarkRow, memory_gib: float) -> str:
    if not row.worked:
        return f"did not work: {row.status}"
    if row.quality and row.quality.failures:
        return f"failed a check: {row.quality.failures[0]}"
    peak = max((row.memory.device_gib or 0.0, row.memory.allocated_gib)) if row.memory else 0.0
    if peak > MEMORY_SHARE * memory_gib:
        return f"took {peak:.1f} GiB, more than {MEMORY_SHARE:.0%} of {memory_gib:.1f}"
    return ""
