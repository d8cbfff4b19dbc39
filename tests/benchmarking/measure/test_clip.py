"""One clip, measured on a real pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import wanstore
from wanstore.benchmarking.measure import _clip as measure
from wanstore.benchmarking.measure._clip import Watch, measure_clip, watch_memory
from wanstore.benchmarking.measure._nvml import DeviceWatch
from wanstore.interfaces import Quiet
from wanstore.presets import Preset

PRESET = Preset("tiny", width=32, height=32, frames=5, steps=3)


def test_a_clip_is_told_apart_into_stages(pipe: Any) -> None:
    """A figure for each step; the phases lie within the whole."""
    one, frames = measure_clip(pipe, PRESET, take=1, progress=Quiet())
    assert frames.shape == (5, 32, 32, 3)
    assert len(one.steps) == 3 and min(one.text_encoding, *one.steps, one.decoding, one.writing) > 0
    assert one.text_encoding + sum(one.steps) + one.decoding + one.writing <= one.seconds


def test_measuring_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    """Nothing of it stays on the pipeline, after a failure neither."""
    before = pipe.encode_prompt, pipe.vae.decode, pipe.vae._decode
    measure_clip(pipe, PRESET, take=1, progress=Quiet())
    with pytest.raises(RuntimeError, match="stop"):
        measure_clip(pipe, PRESET, take=1, progress=_Stops())
    assert (pipe.encode_prompt, pipe.vae.decode, pipe.vae._decode) == before


def test_the_prompt_of_every_clip_is_encoded(tiny_fp16: Path) -> None:
    """Though the pipeline keeps embeddings: each clip has a prompt of its own, all have one negative prompt."""
    pipe: Any = wanstore.load(tiny_fp16, sealed=False, device="cpu", memory="offload")
    for take in (3, 2, 1):
        measure_clip(pipe, PRESET, take=take, progress=Quiet())
    assert len(pipe._prompts) == 3 + 1


def test_of_a_warm_up_one_frame_is_written(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets up what writes; all frames are given all the same."""
    written: list[int] = []
    monkeypatch.setattr(measure, "write_clip", lambda frames, _: written.append(len(frames)))
    shapes = [
        measure_clip(pipe, PRESET, take=1, progress=Quiet(), warm_up=warm_up)[1].shape for warm_up in (True, False)
    ]
    assert written == [1, 5] and shapes == [(5, 32, 32, 3)] * 2


@pytest.mark.usefixtures("counters")
def test_each_stage_has_a_peak_of_its_own_and_the_whole_loses_none() -> None:
    """The highest of all clips; what lies between phases counts in the whole only."""
    watch = Watch(torch.device("cuda"), None)
    watch.ended(None)
    first = (("text_encoding", 5), ("denoising", 2), ("decoding", 3), (None, 6))
    for phase, gib in (*first, ("text_encoding", 4), ("denoising", 3), ("decoding", 1)):
        _Counters.take(gib)
        watch.ended(phase)
    _Counters.take(1)
    assert watch.phase_peaks_gib == {"text_encoding": 5, "denoising": 3, "decoding": 3}
    peaks = watch.peaks()
    assert (peaks.allocated_gib, peaks.reserved_gib) == (6, 7)


@pytest.mark.gpu
def test_on_a_gpu_a_clips_stages_are_told_apart(tiny_fp16: Path) -> None:
    """None takes more than the whole."""
    pipe = wanstore.load(tiny_fp16, sealed=False, device="cuda")
    with watch_memory(pipe.device) as watch:
        measure_clip(pipe, PRESET, take=1, progress=Quiet(), watch=watch)
        assert watch.phase_peaks_gib.keys() == {"text_encoding", "denoising", "decoding", "output"}
        assert 0 < max(watch.phase_peaks_gib.values()) <= watch.peaks().allocated_gib


def test_memory_on_a_cpu_is_the_peak_of_the_process(pipe: Any) -> None:
    """What was taken and given back in the block counts; torch's and NVML's figures are not there."""
    import numpy as np

    with watch_memory(pipe.device) as watch:
        before = watch.peaks().allocated_gib
        np.ones(64 << 20, np.uint8).sum()
        after = watch.peaks()
    assert after.allocated_gib > before + 0.04
    assert after.reserved_gib is None and after.device_gib is None and watch.joules() is None


def test_the_device_tells_its_peak_and_its_energy() -> None:
    """The peak is the most that was ever seen; energy comes in joules, None where the GPU does not count it."""
    nvml = _Nvml(used=[1 << 30, 3 << 30, 2 << 30])
    watch = DeviceWatch(nvml, "gpu")
    assert [watch.peak_gib, watch.peak_gib, watch.peak_gib] == [1, 3, 3]
    assert watch.joules() == 1.5
    nvml.counts = False
    assert watch.joules() is None


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's counters, as without a GPU they are not there."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: _Counters.peak)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: _Counters.peak + (1 << 30))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: _Counters.take(0))
    yield
    _Counters.take(0)


class _Counters:
    peak = 0

    @classmethod
    def take(cls, gib: int) -> None:
        cls.peak = gib << 30


class _Stops:
    def start(self, task: str, total: int, unit: str = "bytes") -> None: ...
    def advance(self, task: str, amount: int) -> None:
        raise RuntimeError("stop")

    def finish(self, task: str) -> None: ...
    def message(self, text: str) -> None: ...


class _Nvml:
    """In place of NVIDIA's library, which needs its driver: the three names that are used."""

    class NVMLError(Exception): ...

    def __init__(self, used: list[int]) -> None:
        self._used = iter(used)
        self.counts = True

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return type("Memory", (), {"used": next(self._used)})

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError
        return 1500
