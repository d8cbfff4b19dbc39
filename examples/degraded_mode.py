"""Degraded mode: when too many requests wait, clips are made by the safe preset, so that the queue gets shorter.

Pure functions, apart from the endpoint so that they can be read and tested alone.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Policy:
    """When to degrade, by the estimated wait of a request that comes now.

    The two limits lie apart: with one, a queue that hovers around it would change the preset with every clip.
    """

    enter_seconds: float = 300.0
    leave_seconds: float = 100.0


@attrs.frozen
class Choice:
    """The preset to use; `reason` says why when it is not the one that was asked for, or why it is all the same."""

    preset: str
    degraded: bool = False
    reason: str = ""


def estimated_wait_seconds(waiting: int, containers: int, clip_seconds: float) -> float:
    """How long a request that comes now waits: `waiting` are before it, `containers` make a clip each at a time."""
    return waiting * clip_seconds / max(containers, 1)


def is_overloaded(policy: Policy, wait_seconds: float, before: bool) -> bool:
    """Whether degraded mode is on now, given whether it was on `before`."""
    return wait_seconds > (policy.leave_seconds if before else policy.enter_seconds)


def choose(asked: str, safe: str, overloaded: bool, may_degrade: bool, wait_seconds: float) -> Choice:
    """The preset for one request. One that is asked for the safe preset gets it, and is not degraded."""
    if not overloaded or asked == safe:
        return Choice(asked)
    if not may_degrade:
        return Choice(asked, reason="the queue is long, but the request refuses another preset")
    return Choice(safe, degraded=True, reason=f"the queue is about {wait_seconds:.0f} s long, {asked} would add to it")


def smoothed(average: float, latest: float) -> float:
    """A running average in which the last few clips count most: presets are mixed, and the mix changes."""
    return average + 0.3 * (latest - average)
