"""Presets on a ready pipeline in this process: what becomes a row, and how."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

import wanstore
from wanstore.benchmarking.measure import _pipeline_benchmarker as runner
from wanstore.benchmarking.measure._pipeline_benchmarker import PipelineBenchmarker
from wanstore.benchmarking.measure._quality import PSNR_CEILING
from wanstore.benchmarking.measure._reference_clips import hash_clip
from wanstore.benchmarking.report import BenchmarkReport
from wanstore.benchmarking.rows import Round
from wanstore.interfaces import Quiet
from wanstore.memory import _schedule as schedules
from wanstore.presets import Preset
from wanstore.testing import BenchmarkerTests

PRESET = Preset("tiny", width=32, height=32, frames=5, steps=4)
ABSURD = attrs.evolve(PRESET, name="absurd", width=16_000_000, height=16_000_000)
"""Its latents alone would take petabytes: no machine has them, however it overcommits."""


class TestPipelineBenchmarker(BenchmarkerTests):
    """Everything that any benchmarker must do."""

    @pytest.fixture
    def benchmarker(self, pipe: Any) -> PipelineBenchmarker:
        return PipelineBenchmarker(pipe)


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


def test_a_preset_that_changes_the_clip_is_measured_beside_itself_without(pipe: Any) -> None:
    """Whole: steps with guidance and without differ, so that none stand for others."""
    lossy = attrs.evolve(PRESET, guidance_until=0.5)
    row = PipelineBenchmarker(pipe, steps={"tiny": 2}).measure(lossy, Quiet())
    assert row.worked and not row.extrapolated and row.lossless and row.lossless.seconds > 0
    assert row.lossless.scores["psnr"] < 100
    assert PipelineBenchmarker(pipe).measure(PRESET, Quiet()).lossless is None


def test_a_picture_of_the_clip_and_the_clip_are_kept(pipe: Any, tmp_path: Path) -> None:
    """In the folder that was named. Of a model that was not trained there is nothing to see, and nothing to score."""
    row = PipelineBenchmarker(pipe, pictures=tmp_path / "p").measure(PRESET, Quiet())
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [*row.frames, row.video]
    untrained = PipelineBenchmarker(pipe, trained=False, pictures=tmp_path / "n").measure(PRESET, Quiet())
    assert not (tmp_path / "n").exists() and untrained.worked and untrained.quality is None


@pytest.mark.parametrize("memory", ["resident", "offload"])
def test_the_last_clip_is_the_same_however_many_come_before_it(tiny_fp16: Path, tmp_path: Path, memory: Any) -> None:
    """On the same pipeline too, whose text is encoded anew; so runs can be compared."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu", memory=memory, dtype={"vae": "float32"})
    first = PipelineBenchmarker(pipe, warmup=1, keep_clips=tmp_path / "a").measure(PRESET, Quiet())
    again = PipelineBenchmarker(pipe, rounds=2, reference=tmp_path / "a", keep_clips=tmp_path / "b")
    row = again.measure(PRESET, Quiet())
    assert row.quality and first.quality and "psnr" not in first.quality.scores
    assert row.quality.scores["psnr"] == PSNR_CEILING and row.quality.scores["ssim"] == pytest.approx(1)
    assert row.clip_sha256 == first.clip_sha256 == hash_clip(tmp_path / "b", PRESET)
    if memory == "offload":
        assert len(pipe._prompts) == 2 + 1, "none of the first measurement's was found"


def test_a_clip_of_other_arithmetic_is_told_by_how_much_it_differs(tiny_fp16: Path, tmp_path: Path) -> None:
    """What float16 costs in the VAE: near, and not equal."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu", dtype={"vae": "float32"})
    PipelineBenchmarker(pipe, keep_clips=tmp_path).measure(PRESET, Quiet())
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu")
    row = PipelineBenchmarker(pipe, reference=tmp_path).measure(PRESET, Quiet())
    assert row.quality and not row.quality.missing
    assert 30 < row.quality.scores["psnr"] < PSNR_CEILING


def test_a_reference_that_is_not_there_or_does_not_fit_is_told(pipe: Any, tmp_path: Path) -> None:
    """The row is as good as any, and its other scores are there."""
    PipelineBenchmarker(pipe, keep_clips=tmp_path).measure(PRESET, Quiet())
    benchmarker = PipelineBenchmarker(pipe, reference=tmp_path)
    for preset, why in (
        (attrs.evolve(PRESET, name="other"), "No reference clip: there is no other.npy"),
        (attrs.evolve(PRESET, width=48), "The clip is 5×32×48×3, the reference 5×32×32×3"),
    ):
        row = benchmarker.measure(preset, Quiet())
        assert row.worked and row.quality and row.quality.missing == {"psnr": why, "ssim": why}
        assert "sharpness" in row.quality.scores


def test_the_first_clip_counts_the_steps_and_the_writing_that_a_warm_up_left_out(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two more steps, and a whole clip's file; without a warm-up the first clip has both."""
    made = Round(text_encoding=0, steps=(5.0,) * 4, decoding=0, writing=100.0, seconds=120.0)
    short = attrs.evolve(made, steps=(5.0,) * 2, writing=1.0)
    frames = np.full((5, 32, 32, 3), 0.5, np.float32)
    monkeypatch.setattr(runner, "measure_clip", lambda *_, warm_up, **__: (short if warm_up else made, frames))
    for warmup, more in ((1, 110), (0, 0)):
        row = PipelineBenchmarker(pipe, warmup=warmup, began=time.time()).measure(PRESET, Quiet())
        assert row.first_clip_seconds == pytest.approx(more, abs=2)


def test_out_of_memory_is_a_row_and_the_next_preset_goes_on(pipe: Any) -> None:
    """torch refuses to allocate; the report still has all rows, and its JSON reads back."""
    report = wanstore.benchmark(pipe, [ABSURD, attrs.evolve(PRESET, steps=1)])
    assert [row.status for row in report.rows] == ["out of memory", "ok"]
    assert report.rows[0].reason and report.safe_preset == "tiny"
    assert BenchmarkReport.from_json(report.to_json()) == report


def test_a_row_tells_the_plan_of_memory_and_what_it_counts_on(tiny_fp16: Path) -> None:
    """Parts that make room for one another are measured as others are; one whose parts all stay has no plan."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu", memory="offload")
    row = PipelineBenchmarker(pipe, rounds=2, warmup=1).measure(PRESET, Quiet())
    assert row.worked and row.memory_plan == "text_encoder offloaded" and len(row.rounds) == 2
    assert (
        row.predicted_gib.keys() == {"text_encoding", "denoising", "decoding", "output"}
        and min(row.predicted_gib.values()) > 0
    )
    assert row.phase_peaks_gib == {}, "a CPU's memory is not torch's to count"
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu")
    row = PipelineBenchmarker(pipe).measure(PRESET, Quiet())
    assert (row.memory_plan, row.predicted_gib) == ("", {})


def test_a_clip_without_a_plan_is_a_row_and_the_next_preset_goes_on(
    tiny_fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No plan is told in it: none was followed."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cpu", memory="offload")
    schedule: Any = pipe._schedule
    schedule.origin = attrs.evolve(schedule.origin, memory="auto")
    monkeypatch.setattr(schedules, "budget_bytes", lambda _: 1 << 30)
    large = attrs.evolve(PRESET, name="large", width=4096, height=4096)
    report = wanstore.benchmark(pipe, [large, PRESET])
    assert [row.status for row in report.rows] == ["out of memory", "ok"]
    assert "under the smallest plan" in report.rows[0].reason
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
