"""wanstore.benchmarking.plan: what a benchmark will take and cost, before a GPU starts."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import attrs
import pytest

from wanstore.benchmarking.plan import DAY_SECONDS, OVERHEAD_SECONDS, UNKNOWN_SECONDS, Plan, lines, plan
from wanstore.errors import NotSupportedError
from wanstore.presets import PRESETS

ALL = list(PRESETS.values())


def test_cheap_presets_get_several_rounds_and_dear_ones_a_single_one() -> None:
    """On an L4; on an H100 more of them are cheap."""
    assert [one.rounds for one in plan(ALL, "L4")] == [3, 1, 1, 1]
    assert [one.rounds for one in plan(ALL, "H100")] == [3, 3, 2, 1]
    assert [one.rounds for one in plan(ALL, "L4", rounds=2)] == [2] * 4


@pytest.mark.parametrize("gpu", ["L4", "H100"])
def test_a_preset_is_stopped_well_after_the_estimates_slow_end_and_within_a_day(gpu: str) -> None:
    """Whatever the estimate is: nothing may run longer at Modal."""
    for one in plan(ALL, gpu):
        assert one.seconds and one.seconds[0] < one.seconds[1] < one.timeout_seconds <= DAY_SECONDS
        assert one.timeout_seconds > 1.4 * (one.seconds[1] - OVERHEAD_SECONDS)


@pytest.mark.parametrize(
    ("changes", "options"), [({}, {"timeout_seconds": 3600}), ({"frames": 641}, {}), ({}, {"rounds": 40})]
)
def test_what_cannot_be_done_in_time_is_refused_with_its_estimate_and_cost(changes: Any, options: Any) -> None:
    """By the quick end, so nothing that might just fit is refused."""
    with pytest.raises(NotSupportedError, match=r"720p/10s cannot be .* minutes of an L4, \$\d+\.\d\d to \d+\.\d\d\."):
        plan([attrs.evolve(PRESETS["720p/10s"], **changes)], "L4", **options)


def test_what_may_or_may_not_fit_is_tried() -> None:
    """The timeout that was asked for is the one that holds."""
    (one,) = plan([PRESETS["720p/5s"]], "L4", timeout_seconds=50 * 60)
    assert one.seconds and one.seconds[0] < one.timeout_seconds == 3000 < one.seconds[1]


def test_without_an_estimate_there_is_a_limit_all_the_same() -> None:
    """A CPU, a GPU that is not in the table."""
    assert plan([ALL[0]], "") == (Plan(ALL[0], 1, 50, UNKNOWN_SECONDS),)


def test_fewer_steps_cost_less() -> None:
    """Never more than the preset has."""
    (quick,), (whole,) = plan([ALL[3]], "L4", steps=4), plan([ALL[3]], "L4", steps=500)
    assert quick.steps == 4 and whole.steps == 50
    assert quick.seconds and whole.seconds and quick.seconds[1] < whole.seconds[1] / 5


def test_the_table_has_a_line_for_each_preset_and_the_sum() -> None:
    """Minutes and dollars; without an estimate there is no sum."""
    *table, total, _ = lines(plan(ALL, "L4"), "L4", cores=2, memory_gib=16)
    assert [line.split()[0] for line in table] == ["preset", *PRESETS]
    assert re.search(r"in all \d+ to \d+ minutes of L4, \$\d\.\d\d to \d\.\d\d, side by side in \d+ to \d+", total)
    assert lines(plan(ALL[:1], ""), "")[-1].split()[0] == "480p/3s"


def test_it_needs_attrs_alone() -> None:
    """A machine that only starts a benchmark has no more than `modal` and what comes with it."""
    program = "import sys, wanstore.benchmarking.plan\nprint(*sorted({n.partition('.')[0] for n in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    brought = set(run.stdout.split()) - set(sys.stdlib_module_names) - {"wanstore", "attr", "attrs"}
    assert not {name for name in brought if not name.startswith(("_", "sitecustomize", "distutils"))}
