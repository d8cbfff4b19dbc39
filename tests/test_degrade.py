"""wanstore.degrade: when the safe preset is used, when a request is refused, and what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from wanstore.degrade import Decision, Option, Policy, Queue, State, decide, next_state, smoothed

POLICY = Policy(enter_seconds=300, leave_seconds=100, dwell_seconds=60, refuse_seconds=1000)
DEAR, SAFE = Option("720p/5s", 2000), Option("480p/3s", 200)
LONG = Queue(waiting=4, runners=1, clip_seconds=100)
DEGRADED = State(degraded=True)


def test_the_wait_is_shared_by_the_runners() -> None:
    """Six clips of a minute: two runners are done with them in three minutes. None yet counts as one."""
    assert Queue(6, 2, 60).wait_seconds == 180
    assert Queue(6, 0, 60).wait_seconds == 360


def test_degraded_mode_is_entered_and_left_at_different_waits() -> None:
    """A queue between the two limits changes nothing, whichever way it came."""
    state, seen = State(), []
    for minute, wait in enumerate((0, 200, 300, 301, 200, 101, 100, 99, 200)):
        state = next_state(POLICY, state, wait, minute * 60)
        seen.append(state.degraded)
    assert seen == [False, False, False, True, True, True, False, False, False]


def test_a_mode_lasts_its_time_whatever_the_queue_does() -> None:
    """A queue that jumps each second changes it once a minute."""
    state, changes = State(), 0
    for second in range(600):
        before, state = state, next_state(POLICY, state, 400 if second % 2 else 0, second)
        changes += state != before
    assert changes <= 10


@pytest.mark.parametrize(
    ("state", "asked", "may_degrade", "preset", "degraded"),
    [
        (State(), DEAR, True, "720p/5s", False),
        (DEGRADED, DEAR, True, "480p/3s", True),
        (DEGRADED, DEAR, False, "720p/5s", False),
        (DEGRADED, SAFE, True, "480p/3s", False),
        (DEGRADED, Option("quick", 20), True, "quick", False),
    ],
)
def test_each_request_gets_its_preset_or_a_cheaper_safe_one(
    state: State, asked: Option, may_degrade: bool, preset: str, degraded: bool
) -> None:
    """Only degraded mode degrades, only who lets it, and never to what takes as long."""
    decision = decide(POLICY, state, LONG, asked=asked, safe=SAFE, may_degrade=may_degrade)
    assert (decision.preset, decision.degraded) == (preset, degraded)


def test_without_a_safe_preset_nothing_is_degraded() -> None:
    """As where no benchmark has nominated one."""
    assert decide(POLICY, DEGRADED, LONG, asked=DEAR, safe=None) == Decision("720p/5s")


@pytest.mark.parametrize("state", [State(), DEGRADED])
def test_beyond_the_hard_limit_a_request_is_refused(state: State) -> None:
    """Whatever it asks for, with the wait."""
    decision = decide(POLICY, state, Queue(11, 1, 100), asked=SAFE, safe=SAFE)
    assert decision.preset is None and "1100 s long, more than 1000 s" in decision.reason


def test_the_reason_is_told() -> None:
    """Also to who refused; nothing is said to who got what they asked for."""
    assert "400 s" in decide(POLICY, DEGRADED, LONG, asked=DEAR, safe=SAFE).reason
    assert "refuses" in decide(POLICY, DEGRADED, LONG, asked=DEAR, safe=SAFE, may_degrade=False).reason
    assert not decide(POLICY, DEGRADED, LONG, asked=SAFE, safe=SAFE).reason


@pytest.mark.parametrize(
    "limits", [{"leave_seconds": 300}, {"enter_seconds": 5000}, {"leave_seconds": -1}, {"dwell_seconds": -1}]
)
def test_a_policy_that_makes_no_sense_is_refused(limits: Any) -> None:
    """Leaving above entering would change the mode with every request."""
    with pytest.raises(ValueError, match="leave < enter < refuse"):
        Policy(**limits)


def test_the_average_follows_the_mix() -> None:
    """After a few clips of another length the first guess is forgotten."""
    average = 180.0
    for _ in range(10):
        average = smoothed(average, 60.0)
    assert average == pytest.approx(60, abs=4)
