"""Two reports side by side: what counts as worse, and what is not compared at all."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from tests.benchmarking.reports import failed, report, row
from wanstore.benchmarking.compare import compare
from wanstore.benchmarking.rows import MemoryPeaks, Quality
from wanstore.presets import PRESETS


def test_the_same_report_twice_has_no_regressions() -> None:
    """Three figures a preset, all the same."""
    found = compare(report(row(), row("480p/5s", 2.0)), report(row(), row("480p/5s", 2.0)))
    assert not found.regressions and not found.flags and len(found.figures) == 6
    assert found.lines()[-1] == "no regressions in 6 figures"


def test_a_slower_preset_is_a_regression_by_percent_and_by_seconds() -> None:
    """Clip and step; the other preset is not blamed."""
    found = compare(report(row(), row("480p/5s")), report(row(step=1.2), row("480p/5s")))
    assert len(found.regressions) == 2 and all("480p/3s" in line and "worse" in line for line in found.regressions)
    assert "53.500 → 63.500 s (+18.7 %, +10.000 s)" in found.regressions[0]
    assert found.lines()[-1] == "2 regressions in 6 figures"


def test_a_quicker_preset_is_no_regression() -> None:
    """It is told as better."""
    found = compare(report(row()), report(row(step=0.5)))
    assert not found.regressions and any("better" in line for line in found.lines())


def test_more_memory_is_a_regression() -> None:
    """By what is needed, not by what was merely reserved."""
    before = report(row(memory=MemoryPeaks(10.0, 10.5, 11.0)))
    assert not compare(before, report(row(memory=MemoryPeaks(10.0, 14.5, 15.0)))).regressions
    worse = compare(before, report(row(memory=MemoryPeaks(10.5, 11.0, 11.5)))).regressions
    assert len(worse) == 1 and "peak memory 10.500 → 11.000 GiB" in worse[0]


@pytest.mark.parametrize(("step", "new_step"), [(1.0, 1.04), (0.001, 0.002)])
def test_noise_is_no_regression(step: float, new_step: float) -> None:
    """Four percent of a long clip; twice as long where that is a millisecond a step."""
    found = compare(report(row(step=step)), report(row(step=new_step)))
    assert not found.regressions and all(figure.verdict == "same" for figure in found.figures)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"device": "NVIDIA L4"}, "device NVIDIA H100 80GB HBM3 → NVIDIA L4"),
        ({"machine": "Linux x86_64, 2 cores"}, "machine Linux x86_64, 16 cores → Linux x86_64, 2 cores"),
    ],
)
def test_different_machines_are_flagged_and_not_compared(change: dict[str, Any], told: str) -> None:
    """However much slower one is."""
    found = compare(report(row()), report(row(step=9.0), **change))
    assert not found.regressions and not found.figures and told in found.flags[0]
    assert found.lines()[-1] == "no regressions; no figure could be compared"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"preset": attrs.evolve(PRESETS["480p/3s"], steps=30)}, "steps 50 → 30"),
        ({"preset": attrs.evolve(PRESETS["480p/3s"], width=640)}, "size 832×480 → 640×480"),
        ({"preset": attrs.evolve(PRESETS["480p/3s"], frames=81)}, "frames 49 → 81"),
        ({"preset": attrs.evolve(PRESETS["480p/3s"], guidance_scale=1.0)}, "guidance scale 6.0 → 1.0"),
        ({"attention": "xformers"}, "attention native → xformers"),
        ({"rounds": row(steps=10).rounds}, "steps measured 50 → 10"),
    ],
)
def test_a_preset_of_another_recipe_is_flagged_and_not_compared(changed: dict[str, Any], told: str) -> None:
    """The others are."""
    old = row(attention="native")
    new = attrs.evolve(old, **({"rounds": row(step=9.0).rounds} | changed))
    found = compare(report(old, row("480p/5s")), report(new, row("480p/5s")))
    assert not found.regressions and {figure.preset for figure in found.figures} == {"480p/5s"}
    assert any("480p/3s: not compared, the recipe differs" in flag and told in flag for flag in found.flags)


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory_cap_gib", 22.0), ("weights", "Wan 2.1 1.3B"), ("dtype", "vae=float32"), ("memory", "offload")],
)
def test_another_cap_dtype_plan_or_other_weights_are_another_recipe(field: str, value: Any) -> None:
    """For every preset."""
    found = compare(report(row(), row("480p/5s")), report(row(step=9.0), row("480p/5s"), **{field: value}))
    assert not found.figures and len(found.flags) == 2 and not found.regressions


def test_a_preset_that_no_longer_works_is_a_regression() -> None:
    """Whatever its figures were. The other way round it is mended."""
    broken = compare(report(row()), report(failed("480p/3s")))
    assert broken.regressions == ("480p/3s: worked, and now out of memory (3 GiB too much)",)
    mended = compare(report(failed("480p/3s")), report(row()))
    assert not mended.regressions and mended.mended == ("480p/3s: was out of memory, and works now",)
    assert not compare(report(failed()), report(failed())).regressions


def test_a_check_that_newly_fails_is_a_regression() -> None:
    """One that failed before is not."""
    black = Quality(failures=("frame 3 is black",))
    assert compare(report(row()), report(row(quality=black))).regressions == (
        "480p/3s: passed before, and now frame 3 is black",
    )
    assert not compare(report(row(quality=black)), report(row(quality=black))).regressions


def test_other_versions_are_told_and_compared() -> None:
    """They are what a comparison is for."""
    found = compare(report(row()), report(row(step=2.0), versions={"torch": "2.13.0"}))
    assert found.flags == ("versions differ: torch 2.11.0 → 2.13.0",) and found.regressions


def test_presets_of_only_one_report_are_flagged() -> None:
    """Nothing is dropped in silence."""
    found = compare(report(row(), row("480p/5s")), report(row(), row("720p/5s")))
    assert found.flags == (
        "480p/5s: not compared, only in the old report",
        "720p/5s: not compared, only in the new report",
    )


def test_machines_are_told_what_people_are() -> None:
    """Plain data: the lines, and each figure with its verdict."""
    found = compare(report(row(), row("480p/5s")), report(row(step=1.2), row("720p/5s")))
    told = json.loads(json.dumps(found.to_json()))
    assert told["regressions"] == list(found.regressions) and told["mended"] == []
    assert "480p/5s: not compared, only in the old report" in told["flags"]
    assert told["figures"][1] == {
        "preset": "480p/3s", "name": "step", "unit": "s", "old": 1.0, "new": 1.2,
        "percent": pytest.approx(20), "verdict": "worse",
    }  # fmt: skip
