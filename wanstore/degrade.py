"""Degraded mode: while too many requests wait, clips are made by the safe preset, so that the queue gets shorter.

Pure functions and plain data: a service asks for the queue's length, keeps the `State`, and does what is decided.

    state = next_state(policy, state, queue.wait_seconds, time.monotonic())
    decision = decide(policy, state, queue, asked=Option("720p/5s", 2100), safe=Option("480p/3s", 240))
"""

from __future__ import annotations

import math

import attrs


@attrs.frozen
class Policy:
    """When to degrade and when to refuse, by the estimated wait of a request that comes now, in seconds.

    Attributes:
        enter_seconds: degraded mode begins above it.
        leave_seconds: and ends below it. The two lie apart: with one limit, a queue that hovers around it would change
            the mode with every request.
        dwell_seconds: a mode lasts at least as long, whatever the queue does.
        refuse_seconds: above it a request is refused: whoever waits longer has given up.
    """

    enter_seconds: float = 300.0
    leave_seconds: float = 100.0
    dwell_seconds: float = 120.0
    refuse_seconds: float = 1800.0

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.leave_seconds < self.enter_seconds < self.refuse_seconds or self.dwell_seconds < 0:
            raise ValueError("a policy's seconds are not leave < enter < refuse, all from 0, and dwell from 0")


@attrs.frozen
class Queue:
    """What waits: requests, the runners that make a clip each at a time, and what a clip takes, in seconds."""

    waiting: int
    runners: int
    clip_seconds: float

    @property
    def wait_seconds(self) -> float:
        """How long a request that comes now waits. A runner that is yet to start counts as one."""
        return self.waiting * self.clip_seconds / max(self.runners, 1)


@attrs.frozen
class Option:
    """A preset by its name, and the seconds that its clip takes."""

    preset: str
    seconds: float


@attrs.frozen
class State:
    """Whether degraded mode is on, and since when, by the caller's clock in seconds."""

    degraded: bool = False
    since: float = -math.inf


@attrs.frozen
class Decision:
    """What becomes of a request: the preset of its clip, or None where it is refused.

    `reason` says why it is not what was asked for, or why it is all the same; "" where nothing is to be said.
    """

    preset: str | None
    degraded: bool = False
    reason: str = ""


def next_state(policy: Policy, state: State, wait_seconds: float, now: float) -> State:
    """The mode from now on. It changes at the policy's limits, and not before the old one has lasted its time."""
    wanted = wait_seconds > (policy.leave_seconds if state.degraded else policy.enter_seconds)
    if wanted == state.degraded or now - state.since < policy.dwell_seconds:
        return state
    return State(wanted, now)


def decide(
    policy: Policy, state: State, queue: Queue, *, asked: Option, safe: Option | None, may_degrade: bool = True
) -> Decision:
    """What to do with one request. The safe preset is taken only where it is cheaper than what was asked for."""
    wait = f"the queue is about {queue.wait_seconds:.0f} s long"
    if queue.wait_seconds > policy.refuse_seconds:
        return Decision(None, reason=f"{wait}, more than {policy.refuse_seconds:.0f} s: try again later")
    if not state.degraded or safe is None or safe.seconds >= asked.seconds:
        return Decision(asked.preset)
    if not may_degrade:
        return Decision(asked.preset, reason=f"{wait}, but the request refuses another preset")
    return Decision(safe.preset, degraded=True, reason=f"{wait}, {asked.preset} would add to it")


def smoothed(average: float, latest: float) -> float:
    """A running average in which the last few clips count most: presets are mixed, and the mix changes."""
    return average + 0.3 * (latest - average)
