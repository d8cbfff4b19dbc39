"""The safe preset: what degraded mode falls back to, chosen by a pure function that gives its reasons."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from wanstore.benchmarking.rows import BenchmarkRow, MemoryPeaks

MEMORY_SHARE = 0.8
"""Of the smallest GPU's memory: the rest is for fragments, other prompts, and other processes."""


@attrs.frozen
class SafeChoice:
    """The preset's name, None if none qualifies; `reasons` say why it, and why not each of the others."""

    preset: str | None
    reasons: tuple[str, ...]


def choose_safe(rows: Sequence[BenchmarkRow], memory_gib: float) -> SafeChoice:
    """The cheapest preset at its worst that worked, passed all hard checks and leaves a fifth of `memory_gib` free.

    `memory_gib` is the smallest GPU's that clips are to be made on. The rows come from one machine, so the quickest
    is the cheapest. Ties are decided by memory, and then by name.
    """
    if not rows:
        return SafeChoice(None, ("no preset was measured",))
    why_not = [(row, _why_not(row, memory_gib)) for row in rows]
    refused = tuple(f"{row.preset.name} {reason}" for row, reason in why_not if reason)
    fit = sorted((row for row, reason in why_not if not reason), key=_cost)
    if not fit:
        return SafeChoice(None, ("no preset qualifies", *refused))
    best, *others = fit
    dearer = tuple(
        f"{row.preset.name} qualifies too, and takes {row.seconds_at_worst:.1f} s {_at_worst(row)}" for row in others
    )
    return SafeChoice(best.preset.name, (*_why(best, memory_gib), *dearer, *refused))


def needed_gib(memory: MemoryPeaks) -> float:
    """The peak that a preset needs: what torch handed out, and what the device held besides torch's allocator.

    What the allocator reserved but did not hand out is left out: it grows with the card, and is given back when
    memory is short.
    """
    if memory.device_gib is None:
        return memory.allocated_gib
    reserved = memory.allocated_gib if memory.reserved_gib is None else memory.reserved_gib
    return memory.allocated_gib + max(memory.device_gib - reserved, 0.0)


def _cost(row: BenchmarkRow) -> tuple[float, float, str]:
    return row.seconds_at_worst, needed_gib(row.memory) if row.memory else 0.0, row.preset.name


def _why(best: BenchmarkRow, memory_gib: float) -> tuple[str, ...]:
    assert best.memory is not None  # or it would not qualify
    name = best.preset.name
    steps = len(best.rounds[0].steps)
    guess = f", extrapolated from {steps} of {best.preset.steps} steps" if best.extrapolated else ""
    plan = (f"{name} was made under this memory plan: {best.memory_plan}",) if best.memory_plan else ()
    return (
        f"{name} is the cheapest that qualifies: {best.seconds_at_worst:.1f} s {_at_worst(best)}{guess}",
        f"{name} {_needs(best.memory, memory_gib)}",
        *plan,
        f"{name} passed every check of its frames" if best.quality else f"{name}'s frames were not checked",
    )


def _at_worst(row: BenchmarkRow) -> str:
    if row.seconds_p95:
        return "(p95)"
    return f"(the slowest of {len(row.rounds)})" if len(row.rounds) > 1 else "(one clip)"


def _why_not(row: BenchmarkRow, memory_gib: float) -> str:
    if not row.worked:
        return f"did not work: {row.status}" + (f" ({row.reason})" if row.reason else "")
    if row.quality and row.quality.failures:
        return f"failed a check of its frames: {', '.join(row.quality.failures)}"
    if row.memory is None:
        return "was measured without its memory"
    return _needs(row.memory, memory_gib) if needed_gib(row.memory) > MEMORY_SHARE * memory_gib else ""


def _needs(memory: MemoryPeaks, memory_gib: float) -> str:
    limit = f"up to {MEMORY_SHARE * memory_gib:.1f} ({MEMORY_SHARE:.0%}) are safe"
    return f"needs {needed_gib(memory):.1f} of {memory_gib:.1f} GiB; {limit}"
