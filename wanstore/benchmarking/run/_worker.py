"""Measures one preset in its own process: a worker module, see `wanstore._workers`.

Its last event is `row`, or `environment`, or that the job is `refused`: then no preset would fare better.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._json import to_json
from wanstore._workers import Send, SentProgress
from wanstore.benchmarking.report import Environment
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.choices import MemoryMode
from wanstore.errors import DeviceError, NotSupportedError
from wanstore.interfaces import Progress
from wanstore.presets import Preset


@attrs.frozen
class Job:
    """What to measure, and how. Without a preset the machine is described, and nothing more.

    `dtype` and `memory` are as for `wanstore.load`, and so is `attention`, or it is `auto`. `functions` are folders of
    compiled functions, None if blocks are to run eagerly. `trained`, `pictures`,
    `keep_clips` and `reference` are as for `PipelineBenchmarker`; `began` is when a process for this job
    alone would have been started, by `time.time`.
    """

    folder: str
    preset: Preset | None = None
    device: str | None = None
    rounds: int = 1
    warmup: int = 0
    steps: dict[str, int] = attrs.field(factory=dict)
    memory_gib: float | None = None
    dtype: dict[str, str] = attrs.field(factory=dict)
    memory: MemoryMode = "auto"
    attention: str | None = None
    functions: tuple[str, ...] | None = None
    trained: bool = True
    pictures: str | None = None
    keep_clips: str | None = None
    reference: str | None = None
    began: float = 0.0


def prepare() -> None:
    """Import what measuring a preset needs."""
    from wanstore.loading._load import import_libraries

    import_libraries()


def do(job: Job, send: Send) -> None:
    """Measure the job's preset; see the module."""
    if job.preset is None:
        send("environment", to_json(_describe(job)))
    else:
        send("row", to_json(measure(job, job.preset, SentProgress(send))))


def measure(job: Job, preset: Preset, progress: Progress) -> BenchmarkRow:
    """Load the pipeline, choose the attention backend, measure."""
    from wanstore.benchmarking.measure._pipeline_benchmarker import PipelineBenchmarker, row_of
    from wanstore.loading._load import load_folder as load

    if job.memory_gib:
        _cap_memory(job.memory_gib, job.device)
    auto = job.attention == "auto"
    try:
        pipe = load(
            Path(job.folder), device=job.device, dtype=job.dtype, attention="native" if auto else job.attention,
            memory=job.memory, compile="off" if job.functions is None else "cached",
            functions=map(Path, job.functions or ()), progress=progress,
        )  # fmt: skip
        loaded = time.time()
        compared = _use_fastest(pipe, preset) if auto else {}
    except (DeviceError, RuntimeError) as error:
        return row_of(preset, error)
    compared_seconds = time.time() - loaded  # a service would not do this before its first clip
    benchmarker = PipelineBenchmarker(
        pipe, job.rounds, job.warmup, job.steps, job.trained, _path(job.pictures), _path(job.keep_clips),
        _path(job.reference), began=job.began + compared_seconds,
    )  # fmt: skip
    attention = pipe.load_report.attention
    return attrs.evolve(
        benchmarker.measure(preset, progress),
        load_seconds=loaded - job.began,
        attention=str(attention).removeprefix("attention ") if attention else "native",
        attention_seconds=compared,
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _use_fastest(pipe: Any, preset: Preset) -> dict[str, float]:
    from wanstore.building._attention import NATIVE
    from wanstore.building._attention_comparison import compare_backends
    from wanstore.loading._activate import apply_attention, apply_functions

    seconds = compare_backends(pipe.transformer, pipe.device, preset)
    # Comparing leaves the last one set that was tried.
    attention = apply_attention(pipe, next(iter(seconds), NATIVE))
    compiled = pipe.load_report.compiled and apply_functions(pipe, attention.used)  # each is for one backend
    pipe.load_report = attrs.evolve(pipe.load_report, attention=attention, compiled=compiled)
    return seconds


def _cap_memory(gib: float, device: str | None) -> None:
    """Limit torch to this much of the GPU, so that a larger one stands in for a smaller one."""
    import torch

    from wanstore.transfer._device import pick_device

    gpu = pick_device(device)
    total_gib = torch.cuda.get_device_properties(gpu).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total_gib), gpu)


def _describe(job: Job) -> Environment:
    from wanstore.benchmarking.measure._pipeline_benchmarker import describe
    from wanstore.transfer._device import pick_device

    device = pick_device(job.device)
    if job.memory_gib and device.type != "cuda":
        raise NotSupportedError("Only a GPU's memory can be capped", "Leave out --memory-gib, or name a GPU")
    return attrs.evolve(describe(device), memory_cap_gib=job.memory_gib)
