"""What a benchmark will take and cost, worked out before a GPU starts: rounds, time limits, dollars.

Needs attrs alone, so that a machine with nothing but `modal` can show it before it starts anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from wanstore.benchmarking.cost import PRICES, Prices
from wanstore.benchmarking.estimate import clip_seconds
from wanstore.errors import NotSupportedError
from wanstore.presets import Preset

DAY_SECONDS = 24 * 3600
"""The longest that Modal lets a function run."""
OVERHEAD_SECONDS = 300
"""Beside the clips: start, imports, loading, comparing attention backends, warm-up. An H100 container took 30."""
MARGIN = 1.5
"""What the estimate's slow end may be exceeded by before a preset is stopped."""
UNKNOWN_SECONDS = 2 * 3600
"""The limit where there is no estimate."""
CHEAP_SECONDS = 20 * 60
"""Rounds are added, up to `MOST_ROUNDS`, while all of them fit in this by the slow end."""
MOST_ROUNDS = 3
COMPARED_STEPS = 20
"""Steps, at most, of clips that are made with compiled blocks and without, to compare them."""
QUICK_STEPS = 4
"""Steps of a quick look, from which the rest is extrapolated."""


@attrs.frozen
class Plan:
    """How one preset will be measured: clips that count, steps of each, and when it is stopped.

    `seconds` is what its container will take, at the quick and the slow end of the estimate; None where there is none.
    """

    preset: Preset
    rounds: int
    steps: int
    timeout_seconds: int
    seconds: tuple[float, float] | None = None


def plan(
    presets: Sequence[Preset],
    gpu: str,
    *,
    rounds: int | None = None,
    steps: int | None = None,
    timeout_seconds: int | None = None,
    compiled: bool = False,
) -> tuple[Plan, ...]:
    """A plan for each preset on a GPU of that name at Modal; what is left out follows from the estimate.

    With `compiled` blocks there are short clips beside those that count, and nothing is assumed to be quicker.

    Raises `NotSupportedError` for a preset that cannot be done in `timeout_seconds`, or in a day.
    """
    return tuple(_plan(preset, gpu, rounds, steps, timeout_seconds, compiled) for preset in presets)


def _plan(
    preset: Preset, gpu: str, rounds: int | None, steps: int | None, timeout_seconds: int | None, compiled: bool
) -> Plan:
    counted = min(steps or preset.steps, preset.steps)
    clip = clip_seconds(attrs.evolve(preset, steps=counted), gpu)
    if clip is None:
        return Plan(preset, rounds or 1, counted, timeout_seconds or UNKNOWN_SECONDS)
    quick, slow = clip
    rounds = rounds or max(1, min(MOST_ROUNDS, int(CHEAP_SECONDS / slow)))
    clips = rounds + (min(COMPARED_STEPS / counted, 1.0) if compiled else 0.0)
    quick, slow = clips * quick, clips * slow + OVERHEAD_SECONDS
    limit = min(timeout_seconds or DAY_SECONDS, DAY_SECONDS)
    if quick > limit:
        raise NotSupportedError(
            f"{preset.name} cannot be measured in {minutes(limit)} minutes: {rounds} × {counted} steps take about "
            f"{minutes(quick)} to {minutes(slow)} minutes of an {gpu}, {dollars((quick, slow), gpu)}",
            "Ask for fewer steps or rounds, or a longer timeout; Modal's own limit is a day",
        )
    return Plan(preset, rounds, counted, timeout_seconds or min(math.ceil(slow * MARGIN), DAY_SECONDS), (quick, slow))


def lines(plans: Sequence[Plan], gpu: str, prices: Prices = PRICES, **container: float) -> list[str]:
    """The plans as a table for a terminal, and their sum. `container` has `cores` and `memory_gib`, as for prices."""
    rows = [("preset", "clips", "steps", "minutes", "dollars", "stopped after")]
    for one in plans:
        time = "not known" if one.seconds is None else " to ".join(map(minutes, one.seconds))
        cost = "not known" if one.seconds is None else dollars(one.seconds, gpu, prices, **container)
        limit = f"{minutes(one.timeout_seconds)} minutes"
        rows.append((one.preset.name, str(one.rounds), str(one.steps), time, cost, limit))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    known = [one.seconds for one in plans if one.seconds]
    if len(known) < len(plans):
        return table
    total = (sum(quick for quick, _ in known), sum(slow for _, slow in known))
    longest = (max(quick for quick, _ in known), max(slow for _, slow in known))
    together = f"in all {' to '.join(map(minutes, total))} minutes of {gpu}, {dollars(total, gpu, prices, **container)}"
    apart = f"side by side in {' to '.join(map(minutes, longest))} minutes"
    return [*table, f"{together}, {apart}", f"(by arithmetic and the GPU's data sheet; prices of {prices.date})"]


def minutes(seconds: float) -> str:
    """To a tenth below ten minutes."""
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def dollars(seconds: tuple[float, float], gpu: str, prices: Prices = PRICES, **container: float) -> str:
    """What a container with that GPU costs for so long, at both ends."""
    quick, slow = (prices.usd(end, gpu=gpu, **container) for end in seconds)
    return f"${quick:.2f} to {slow:.2f}"
