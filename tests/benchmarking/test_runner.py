"""Presets on a ready pipeline in this process: what becomes a row, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

import wanstore
from wanstore.benchmarking.presets import Preset
from wanstore.benchmarking.report import BenchmarkReport
from wanstore.benchmarking.runner import PipelineBenchmarker
from wanstore.interfaces import Quiet
from wanstore.loading import staged

PRESET = Preset("tiny", width=32, height=32, frames=5, steps=4)
ABSURD = attrs.evolve(PRESET, name="absurd", width=16_000_000, height=16_000_000)
"""Its latents alone would take petabytes: no machine has them, however it overcommits."""


def test_rounds_count_and_warm_ups_do_not(pipe: Any) -> None:
    """A round for each clip after the warm-up, all steps of each."""
    row = PipelineBenchmarker(pipe, rounds=2, warmup=1).measure(PRESET, Quiet())
    assert row.worked and not row.extrapolated
    assert [len(one.steps) for one in row.rounds] == [4, 4]
    assert row.quality and not row.quality.failures and row.quality.scores
    assert row.load_seconds is None and row.first_clip_seconds is None


def test_fewer_steps_are_marked_and_extrapolated(pipe: Any) -> None:
    """The row says so, and the clip's seconds stand for all of the preset's steps."""
    row = PipelineBenchmarker(pipe, steps={"tiny": 2}).measure(PRESET, Quiet())
    assert row.extrapolated and len(row.rounds[0].steps) == 2
    assert row.seconds_p50 == pytest.approx(row.rounds[0].seconds + 2 * row.step_seconds)


def test_a_picture_of_the_clip_is_kept(pipe: Any, tmp_path: Path) -> None:
    """In the folder that was named."""
    row = PipelineBenchmarker(pipe, pictures=tmp_path / "p").measure(PRESET, Quiet())
    assert [path.name for path in (tmp_path / "p").iterdir()] == list(row.frames)


def test_out_of_memory_is_a_row_and_the_next_preset_goes_on(pipe: Any) -> None:
    """torch refuses to allocate; the report still has all rows, and its JSON reads back."""
    report = wanstore.benchmark(pipe, [ABSURD, attrs.evolve(PRESET, steps=1)])
    assert [row.status for row in report.rows] == ["out of memory", "ok"]
    assert report.rows[0].reason and report.safe_preset == "tiny"
    assert BenchmarkReport.from_json(report.to_json()) == report


def test_a_row_tells_the_plan_of_memory_and_what_it_counts_on(tiny_fp16: Path) -> None:
    """Parts that make room for one another are measured as others are; one whose parts all stay has no plan."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu", memory="streamed")
    row = PipelineBenchmarker(pipe, rounds=2, warmup=1).measure(PRESET, Quiet())
    assert row.worked and row.memory_plan == "text_encoder streamed" and len(row.rounds) == 2
    assert (
        row.predicted_gib.keys() == {"text", "denoising", "decoding", "output"} and min(row.predicted_gib.values()) > 0
    )
    assert row.stage_peaks_gib == {}, "a CPU's memory is not torch's to count"
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu")
    row = PipelineBenchmarker(pipe).measure(PRESET, Quiet())
    assert (row.memory_plan, row.predicted_gib) == ("", {})


def test_a_clip_without_a_plan_is_a_row_and_the_next_preset_goes_on(
    tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No plan is told in it: none was followed."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu", memory="streamed")
    staging = pipe.wanstore_staging
    staging.origin = attrs.evolve(staging.origin, memory="auto")
    monkeypatch.setattr(staged, "budget_bytes", lambda _: 1 << 30)
    large = attrs.evolve(PRESET, name="large", width=4096, height=4096)
    report = wanstore.benchmark(pipe, [large, PRESET])
    assert [row.status for row in report.rows] == ["out of memory", "ok"]
    assert "by the smallest plan" in report.rows[0].reason
    assert [row.memory_plan for row in report.rows] == ["", "all resident"]


def test_any_other_failure_is_a_row_with_its_reason(pipe: Any) -> None:
    """A text encoder that cannot run fails each clip."""
    broken = attrs.evolve(PRESET, name="broken", guidance_scale=5.0)
    encode = pipe.encode_prompt

    def fails(**_: Any) -> Any:
        raise ValueError("no such prompt\nand more")

    pipe.encode_prompt = fails
    try:
        row = PipelineBenchmarker(pipe).measure(broken, Quiet())
    finally:
        pipe.encode_prompt = encode
    assert (row.status, row.reason) == ("failed", "no such prompt")
