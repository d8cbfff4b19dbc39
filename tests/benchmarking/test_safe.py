"""The safe preset: the rule, over tables and over all reports that Hypothesis can think of."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.benchmarking.reports import clip, failed, report, row
from wanstore.benchmarking.rows import BenchmarkRow, MemoryPeaks, Quality
from wanstore.benchmarking.safe import MEMORY_SHARE, choose_safe, needed_gib
from wanstore.presets import PRESETS


def test_the_cheapest_that_qualifies_is_safe() -> None:
    """By its slowest clip, whatever their order; and every preset has its reason."""
    chosen = choose_safe([row("720p/5s", 5.0), row("480p/3s", 1.0), row("480p/5s", 2.0), failed()], 22.0)
    assert chosen.preset == "480p/3s"
    assert "480p/3s is the cheapest that qualifies: 53.5 s" in chosen.reasons[0]
    told = "\n".join(chosen.reasons)
    assert "480p/5s qualifies too, and takes 103.5 s" in told and "720p/10s did not work: out of memory" in told


def test_the_slowest_clips_decide_not_the_middle_ones() -> None:
    """A preset that is quick at times and slow at others is the dearer one."""
    jumpy = row("480p/3s", rounds=(clip(1.0), clip(1.0), clip(9.0)))
    steady = row("480p/5s", rounds=(clip(2.0), clip(2.0), clip(2.0)))
    assert choose_safe([jumpy, steady], 22.0).preset == "480p/5s"


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (failed("480p/3s", "out of memory", "3 GiB too much"), "did not work: out of memory (3 GiB too much)"),
        (failed("480p/3s", "timeout", ""), "did not work: timeout"),
        (failed("480p/3s", "crash", "signal 9"), "did not work: crash (signal 9)"),
        (row(rounds=()), "did not work"),
        (row(quality=Quality(failures=("frame 3 is black",))), "failed a check of its frames: frame 3 is black"),
        (row(memory=MemoryPeaks(17.7)), "needs 17.7 of 22.0 GiB; up to 17.6 (80%) are safe"),
        (row(memory=None), "was measured without its memory"),
    ],
)
def test_what_does_not_qualify_is_passed_over_with_the_reason(spoiled: BenchmarkRow, why: str) -> None:
    """Though it is the quickest; and alone it leaves none."""
    dearer = row("480p/5s", 3.0)
    chosen = choose_safe([spoiled, dearer], 22.0)
    assert chosen.preset == "480p/5s" and any(f"480p/3s {why}" in reason for reason in chosen.reasons)
    alone = choose_safe([spoiled], 22.0)
    assert alone.preset is None and alone.reasons[0] == "no preset qualifies" and why in alone.reasons[1]


def test_exactly_four_fifths_of_the_memory_are_safe() -> None:
    """The limit itself is allowed."""
    assert choose_safe([row(memory=MemoryPeaks(8.0))], 10.0).preset == "480p/3s"


def test_ties_are_decided_by_memory() -> None:
    """The same seconds: the one that needs less."""
    rows = [row("480p/3s", memory=MemoryPeaks(12.0)), row("480p/5s", memory=MemoryPeaks(11.0))]
    assert choose_safe(rows, 22.0).preset == "480p/5s" == choose_safe(rows[::-1], 22.0).preset


def test_nothing_measured_means_no_safe_preset() -> None:
    """And says so."""
    assert choose_safe([], 22.0).preset is None and choose_safe([], 22.0).reasons == ("no preset was measured",)


def test_the_reasons_tell_what_is_not_certain() -> None:
    """Extrapolated seconds and frames that nobody checked are no secret."""
    told = "\n".join(choose_safe([row(steps=10, quality=None)], 22.0).reasons)
    assert "extrapolated from 10 of 50 steps" in told and "frames were not checked" in told


@pytest.mark.parametrize(
    ("memory", "needed"),
    [
        (MemoryPeaks(10.0), 10.0),
        (MemoryPeaks(10.0, 15.0), 10.0),
        (MemoryPeaks(10.0, 15.0, 16.0), 11.0),
        (MemoryPeaks(10.0, None, 16.0), 16.0),
        (MemoryPeaks(10.0, 15.0, 14.0), 10.0),
    ],
)
def test_what_the_allocator_only_reserved_is_not_needed(memory: MemoryPeaks, needed: float) -> None:
    """It is given back when memory is short; what lies outside the allocator is not."""
    assert needed_gib(memory) == needed


def test_a_memory_cap_stands_in_for_the_smaller_gpu() -> None:
    """20 GiB are little on 80, and too much on 22."""
    rows = [row(memory=MemoryPeaks(20.0))]
    assert report(*rows).safe_preset == "480p/3s"
    assert report(*rows, memory_cap_gib=22.0).safe_preset is None


def test_smaller_and_shorter_clips_may_be_the_safe_one() -> None:
    """A preset of one's own, with fewer steps, takes part like any other."""
    few = attrs.evolve(
        row("480p/3s", rounds=(clip(1.0, 20),)), preset=attrs.evolve(PRESETS["480p/3s"], name="few", steps=20)
    )
    assert choose_safe([row("480p/3s"), few], 22.0).preset == "few"


GIB = st.floats(0.1, 40)
ROWS = st.builds(
    row,
    st.sampled_from(list(PRESETS)),
    st.floats(0.01, 20),
    steps=st.sampled_from((1, 10, 50)),
    memory=st.none() | st.builds(MemoryPeaks, GIB, st.none() | GIB, st.none() | GIB),
    quality=st.none() | st.builds(Quality, st.sampled_from(((), ("black",)))),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.lists(st.one_of(ROWS, st.builds(failed, st.sampled_from(list(PRESETS)))), max_size=6), st.floats(1, 80))
def test_a_safe_preset_qualifies_and_none_that_does_is_cheaper(rows: list[BenchmarkRow], memory_gib: float) -> None:
    """And where none is named, none qualifies. The rule, written down a second time."""

    def qualifies(one: BenchmarkRow) -> bool:
        checked = one.quality is None or not one.quality.failures
        small = one.memory is not None and needed_gib(one.memory) <= MEMORY_SHARE * memory_gib
        return one.status == "ok" and bool(one.rounds) and checked and small

    chosen = choose_safe(rows, memory_gib)
    fit = [one for one in rows if qualifies(one)]
    assert (chosen.preset is None) == (not fit)
    if fit:
        cheapest = min(one.seconds_at_worst for one in fit)
        assert any(one.preset.name == chosen.preset and one.seconds_at_worst == cheapest for one in fit)
    assert chosen.reasons and choose_safe(rows[::-1], memory_gib).preset == chosen.preset
