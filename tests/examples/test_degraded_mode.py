"""examples/degraded_mode.py: when the safe preset is used, and what a request is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from degraded_mode import (  # type: ignore[import-not-found]
    Choice,
    Policy,
    choose,
    estimated_wait_seconds,
    is_overloaded,
    smoothed,
)


def test_the_wait_is_shared_by_the_containers() -> None:
    """Six clips of a minute: two containers are done with them in three minutes. None yet counts as one."""
    assert estimated_wait_seconds(waiting=6, containers=2, clip_seconds=60) == 180
    assert estimated_wait_seconds(waiting=6, containers=0, clip_seconds=60) == 360


def test_it_is_entered_and_left_at_different_waits() -> None:
    """A queue between the two limits changes nothing, whichever way it came."""
    policy = Policy(enter_seconds=300, leave_seconds=100)
    seen, overloaded = [], False
    for wait in (0, 200, 300, 301, 200, 101, 100, 200):
        overloaded = is_overloaded(policy, wait, overloaded)
        seen.append(overloaded)
    assert seen == [False, False, False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("asked", "overloaded", "may_degrade", "preset", "degraded"),
    [
        ("720p/5s", False, True, "720p/5s", False),
        ("720p/5s", True, True, "480p/3s", True),
        ("720p/5s", True, False, "720p/5s", False),
        ("480p/3s", True, True, "480p/3s", False),
    ],
)
def test_each_request_gets_its_preset_or_the_safe_one(
    asked: str, overloaded: bool, may_degrade: bool, preset: str, degraded: bool
) -> None:
    """Only an overload degrades, only who lets it, and only to another preset."""
    choice = choose(asked, "480p/3s", overloaded, may_degrade, 400)
    assert (choice.preset, choice.degraded) == (preset, degraded)


def test_the_reason_is_told() -> None:
    """Also to who refused; nothing is said to who got what they asked for."""
    assert "400 s" in choose("720p/5s", "480p/3s", True, True, 400).reason
    assert "refuses" in choose("720p/5s", "480p/3s", True, False, 400).reason
    assert choose("480p/3s", "480p/3s", True, True, 400) == Choice("480p/3s")


def test_the_average_follows_the_mix() -> None:
    """After a few clips of another length the first guess is forgotten."""
    average = 180.0
    for _ in range(10):
        average = smoothed(average, 60.0)
    assert average == pytest.approx(60, abs=4)
