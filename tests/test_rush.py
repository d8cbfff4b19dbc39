"""A rush, simulated: what the policy of wanstore.degrade makes of it, and what becomes of it without."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from rush import BURST, NEVER, arrivals, seconds_of, simulate  # type: ignore[import-not-found]

from wanstore.degrade import Policy

POLICY = Policy()
SEEDS = range(20)
SLOWEST = seconds_of("480p/5s")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("between", [40.0, 80.0])
def test_everyone_gets_an_answer_and_waits_no_longer_than_the_limit(seed: int, between: float) -> None:
    """A clip in time, or a refusal at once, which comes only when the queue is beyond the hard limit.

    What is promised is an estimate: clips in the queue may take longer than the average, and those that run are not
    counted. Two clips more than it are allowed for that.
    """
    run = simulate(POLICY, arrivals(seed, between))
    for one in run.outcomes:
        assert (one.preset is None) == (one.wait_told > POLICY.refuse_seconds)
        assert one.preset is None or one.began is not None
        assert one.waited <= POLICY.refuse_seconds + 2 * SLOWEST


@pytest.mark.parametrize("seed", SEEDS)
def test_without_it_a_rush_makes_everyone_wait(seed: int) -> None:
    """The same requests: nothing is degraded or refused, and the longest wait is longer."""
    times = arrivals(seed, 60.0)
    without, run = simulate(NEVER, times), simulate(POLICY, times)
    assert all(one.preset and not one.degraded for one in without.outcomes)
    assert max(one.waited for one in run.outcomes) < 0.75 * max(one.waited for one in without.outcomes)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mode_does_not_flap(seed: int) -> None:
    """Each lasts its time, so that it changes a few times in four hours; and before the rush it is hardly on."""
    run = simulate(POLICY, arrivals(seed))
    assert all(later.since - earlier.since >= POLICY.dwell_seconds for earlier, later in pairwise(run.changes))
    assert len(run.changes) <= 16
    before, during = [
        [one.degraded for one in run.outcomes if begin <= one.came < end] for begin, end in ((0, BURST[0]), BURST)
    ]
    assert sum(before) / len(before) < sum(during) / len(during)


def test_without_a_safe_preset_the_queue_is_bounded_all_the_same() -> None:
    """By refusals alone, of which there are more."""
    times = arrivals(1, 40.0)
    run, bare = simulate(POLICY, times), simulate(POLICY, times, safe=None)
    refused = [sum(one.preset is None for one in found.outcomes) for found in (run, bare)]
    assert refused[0] < refused[1] and not any(one.degraded for one in bare.outcomes)
    assert max(one.waited for one in bare.outcomes) <= POLICY.refuse_seconds + 2 * SLOWEST
