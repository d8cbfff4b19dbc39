"""A rush on four runners, simulated with and without degraded mode: how long requests wait.

    python benchmarks/rush.py docs/assets/degrade.svg

Nothing is measured. What a clip takes is the middle of the estimate for an L4 (`wanstore.benchmarking.estimate`);
requests come at random times (Poisson), by a seed. The rule is `wanstore.degrade`'s, as the endpoint applies it.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import attrs

from wanstore.benchmarking.estimate import clip_seconds
from wanstore.degrade import Option, Policy, Queue, State, decide, next_state, smoothed
from wanstore.presets import PRESETS

RUNNERS = 4
ASKED, SAFE = "480p/5s", "480p/3s"
HOURS = 4.0
USUAL_SECONDS, BURST_SECONDS = 200.0, 80.0
"""Between two requests, on average."""
BURST = (3600.0, 2 * 3600.0)


@attrs.frozen
class Outcome:
    """What became of a request: when it came, when its clip began, by which preset; None where it was refused."""

    came: float
    began: float | None
    preset: str | None
    degraded: bool
    wait_told: float

    @property
    def waited(self) -> float:
        return 0.0 if self.began is None else self.began - self.came


@attrs.frozen
class Run:
    """All outcomes, in the order in which the requests came, and each change of the mode."""

    outcomes: tuple[Outcome, ...]
    changes: tuple[State, ...]


def seconds_of(preset: str) -> float:
    """A clip on an L4: the middle of its estimate."""
    return statistics.mean(clip_seconds(PRESETS[preset], "L4") or ())


def arrivals(seed: int, burst_seconds: float = BURST_SECONDS) -> list[float]:
    """When requests come, in seconds: a usual day with a rush in it."""
    chance, now, found = random.Random(seed), 0.0, []
    while now < HOURS * 3600:
        found.append(now)
        mean = burst_seconds if BURST[0] <= now < BURST[1] else USUAL_SECONDS
        now += chance.expovariate(1 / mean)
    return found


def simulate(policy: Policy, times: Sequence[float], *, safe: str | None = SAFE, runners: int = RUNNERS) -> Run:
    """Serve the requests in their order; without a `safe` preset nothing is degraded."""
    free = [0.0] * runners
    """When each runner is free."""
    waiting: deque[tuple[int, float]] = deque()
    outcomes: list[Outcome] = []
    changes: list[State] = []
    state, average = State(), seconds_of(ASKED)

    def start_until(now: float) -> None:
        while waiting and free[0] <= now:
            number, seconds = waiting.popleft()
            began = max(free[0], outcomes[number].came)
            heapq.heapreplace(free, began + seconds)
            outcomes[number] = attrs.evolve(outcomes[number], began=began)

    for now in times:
        start_until(now)
        queue = Queue(len(waiting), runners, average)
        before, state = state, next_state(policy, state, queue.wait_seconds, now)
        changes += [state] if state != before else []
        option = Option(safe, seconds_of(safe)) if safe else None
        decision = decide(policy, state, queue, asked=Option(ASKED, seconds_of(ASKED)), safe=option)
        outcomes.append(Outcome(now, None, decision.preset, decision.degraded, queue.wait_seconds))
        if decision.preset:
            seconds = seconds_of(decision.preset)
            average = smoothed(average, seconds)
            waiting.append((len(outcomes) - 1, seconds))
            start_until(now)
    start_until(float("inf"))
    return Run(tuple(outcomes), tuple(changes))


NEVER = Policy(enter_seconds=1e8, refuse_seconds=1e9)
"""Neither degrades nor refuses."""


def draw(target: Path, seed: int = 1) -> None:
    """Waiting times of one day, with and without."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    text = "#7a8290"  # readable on white and on black
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "text.color": text, "svg.hashsalt": "d"}):
        figure, ax = plt.subplots(figsize=(7.6, 3.4), layout="constrained")
        times = arrivals(seed)
        for label, color, run in (
            ("no policy", "#8a94a6", simulate(NEVER, times)),
            ("degraded mode", "#f08c00", simulate(Policy(), times)),
        ):
            shown = [one for one in run.outcomes if one.began is not None]
            ax.plot([o.came / 60 for o in shown], [o.waited / 60 for o in shown], color=color, lw=1.6, label=label)
            hit = [one for one in shown if one.degraded]
            if hit:
                ax.plot([o.came / 60 for o in hit], [-2.0] * len(hit), "|", color=color, label="a degraded clip")
        ax.axvspan(BURST[0] / 60, BURST[1] / 60, color="#8a94a6", alpha=0.12, lw=0, label="the rush")
        ax.set_xlabel("minute in which a request comes", color=text)
        ax.set_ylabel("minutes until its clip begins", color=text)
        ax.tick_params(colors=text, length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, frameon=False, labelcolor=text)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    draw(target)
    times = arrivals(1)
    for label, policy in (("no policy", NEVER), ("degraded mode", Policy())):
        run = simulate(policy, times)
        waits = [one.waited for one in run.outcomes if one.preset]
        print(
            f"{label}: {len(times)} requests, {sum(one.degraded for one in run.outcomes)} degraded, "
            f"{sum(one.preset is None for one in run.outcomes)} refused; waits: median "
            f"{statistics.median(waits) / 60:.1f}, longest {max(waits) / 60:.1f} minutes; {len(run.changes)} changes"
        )


if __name__ == "__main__":
    main()
