"""The report as data: what its figures are, and its way through JSON."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from tests.benchmarking.reports import clip, failed, report, row
from wanstore.benchmarking.cold_starts import ColdStarts, Start
from wanstore.benchmarking.compare import compare
from wanstore.benchmarking.report import SCHEMA_VERSION, BenchmarkReport
from wanstore.benchmarking.rows import MemoryPeaks, Quality, phase_seconds
from wanstore.errors import DamagedError, NotSupportedError
from wanstore.presets import PRESETS

FULL = report(
    row(
        memory=MemoryPeaks(10.0, 11.0, 12.0),
        quality=Quality(("frame 3 is black",), {"flicker": 0.1}, {"psnr": "no reference"}),
        energy_joules=1000.0,
        attention="native",
        load_seconds=6.0,
        first_clip_seconds=60.0,
        frames=("assets/1.png", "assets/2.png"),
        memory_plan="text_encoder offloaded",
        predicted_gib={"text_encoding": 9.0},
        phase_peaks_gib={"text_encoding": 8.5},
    ),
    failed(),
    memory_cap_gib=22.0,
    memory="offload",
)
FULL = attrs.evolve(FULL, cold_starts=(ColdStarts("gpu", (Start(3.0, 2.0, 1.0, restored=True),), ("crashed",)),))


def test_a_report_comes_back_from_its_json() -> None:
    """Every field of it."""
    assert BenchmarkReport.from_json(FULL.to_json()) == FULL
    assert BenchmarkReport.from_json(FULL.to_json().encode()) == FULL


@pytest.mark.parametrize(("step", "safe"), [(1.0, "480p/3s"), (None, None)])
def test_programs_find_the_safe_preset_in_the_json(step: float | None, safe: str | None) -> None:
    """By name, or null."""
    found = report(row("480p/3s", step)) if step else report(failed())
    document = json.loads(found.to_json())
    assert document["safe_preset"] == safe and document["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("rows", "environment", "told"),
    [
        ([row(name) for name in PRESETS], {"device": "NVIDIA L4", "weights": "Wan 2.1"}, ("L4", True, True)),
        ([row(), failed()], {}, ("H100", False, False)),
        ([*(row(name) for name in list(PRESETS)[:3]), failed()], {"device": "x86_64 CPU"}, (None, False, True)),
        ([*(row(name) for name in list(PRESETS)[:3]), failed(status="timeout")], {}, ("H100", False, False)),
    ],
)
def test_programs_find_in_the_json_what_a_report_may_be_used_for(rows: Any, environment: Any, told: Any) -> None:
    """Which GPU, trained weights, every preset of production: a lack of memory is an answer, a timeout is none."""
    found = report(*rows, **environment)
    document = json.loads(found.to_json())
    assert (document["gpu"], document["trained"], document["complete"]) == told
    assert [one["clip_seconds"] for one in document["rows"]] == [r.seconds_p50 if r.worked else None for r in rows]
    assert BenchmarkReport.from_json(found.to_json()) == found


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused(version: Any) -> None:
    """Not read in part."""
    document = {**json.loads(FULL.to_json()), "schema_version": version}
    with pytest.raises(NotSupportedError, match=r"old\.json has schema version"):
        BenchmarkReport.from_json(json.dumps(document), "old.json")


def without(*path: str | int) -> str:
    """The full report with one thing taken out."""
    document = inner = json.loads(FULL.to_json())
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(document)


def test_a_report_from_before_dtypes_were_told_is_read() -> None:
    """Nothing but float16 could be chosen then."""
    assert BenchmarkReport.from_json(without("environment", "dtype")).environment.dtype == ""


@pytest.mark.parametrize("field", ["memory_plan", "predicted_gib", "phase_peaks_gib"])
def test_a_report_from_before_there_were_plans_is_read(field: str) -> None:
    """All parts stayed then."""
    assert not getattr(BenchmarkReport.from_json(without("rows", 0, field)).rows[0], field)
    assert BenchmarkReport.from_json(without("environment", "memory")).environment.memory == ""


def test_a_report_with_the_names_of_earlier_versions_is_read_with_todays() -> None:
    """Stages were what phases are, and streamed what offloaded is; compared with today's it is the same run."""
    document = json.loads(FULL.to_json())
    row = document["rows"][0]
    row["stage_peaks_gib"] = {"text": row.pop("phase_peaks_gib")["text_encoding"]}
    row["predicted_gib"] = {"text": row["predicted_gib"]["text_encoding"]}
    row["memory_plan"] = "text_encoder streamed"
    document["environment"]["memory"] = "streamed"
    read = BenchmarkReport.from_json(json.dumps(document))
    assert read == FULL
    assert compare(read, FULL).regressions == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        FULL.to_json()[:-20],
        without("rows"),
        without("environment", "device"),
        without("rows", 0, "preset", "width"),
        without("rows", 0, "rounds", 0, "steps"),
        FULL.to_json().replace('"width": 832', '"width": 833'),
        FULL.to_json().replace('"allocated_gib": 10.0', '"allocated_gib": "much"'),
    ],
)
def test_damaged_json_is_refused_by_name(text: str) -> None:
    """Cut off, not a report, a field missing or of the wrong kind: one error that names the file."""
    with pytest.raises(DamagedError, match=r"old\.json is not a benchmark report"):
        BenchmarkReport.from_json(text, "old.json")


def test_fewer_steps_are_extrapolated_at_their_median() -> None:
    """Ten steps of 1 s and 3.5 s besides: fifty take 53.5 s. And the row says so."""
    short = row(steps=10)
    assert short.extrapolated and short.seconds_p50 == 53.5 == row().seconds_p50 and not row().extrapolated


def test_stages_add_up_to_the_clip() -> None:
    """Extrapolated or not; what lies between the phases is the rest."""
    for steps in (10, 50):
        seconds = phase_seconds(row(rounds=(clip(1.0, steps, rest=0.25),)))
        assert seconds == {"text encoding": 0.5, "denoising": 50.0, "decoding": 2.0, "writing": 1.0, "rest": 0.25}


def test_a_stage_is_the_median_of_its_rounds() -> None:
    """One slow clip is not the rule."""
    rounds = (clip(1.0), clip(9.0), clip(1.0))
    assert phase_seconds(row(rounds=rounds))["denoising"] == 50.0 and row(rounds=rounds).step_seconds == 1.0
