"""Runs presets on a ready pipeline, in this process."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from wanstore.benchmarking.measure import measure_clip, watch_memory
from wanstore.benchmarking.presets import Preset
from wanstore.benchmarking.report import BenchmarkReport, BenchmarkRow, Environment
from wanstore.interfaces import Benchmarker, Progress, Quiet

if TYPE_CHECKING:
    from diffusers import WanPipeline


@attrs.frozen
class PipelineBenchmarker(Benchmarker):
    """Measures presets on a pipeline that is loaded: `rounds` clips each, after `warmup` ones that don't count.

    With `steps` fewer denoising steps than a preset's are run, and the report extrapolates.
    """

    pipe: WanPipeline
    rounds: int = 1
    warmup: int = 0
    steps: int | None = None

    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> BenchmarkReport:
        progress = progress or Quiet()
        rows = tuple(self.measure(preset, progress) for preset in presets)
        return BenchmarkReport(describe(self.pipe.device), rows)

    def measure(self, preset: Preset, progress: Progress) -> BenchmarkRow:
        """One row; what goes wrong is told in it."""
        import torch

        shorter = attrs.evolve(preset, steps=min(preset.steps, self.steps or preset.steps))
        began = time.perf_counter()
        first = None
        rounds = []
        with watch_memory(self.pipe.device) as peaks:
            try:
                for number in range(self.warmup + self.rounds):
                    measured, _ = measure_clip(self.pipe, shorter, progress=progress)
                    first = first or time.perf_counter() - began
                    if number >= self.warmup:
                        rounds.append(measured)
            except (torch.OutOfMemoryError, MemoryError) as error:
                return BenchmarkRow(preset, "out of memory", _line_of(error), memory=peaks())
            except (RuntimeError, ValueError) as error:
                return BenchmarkRow(preset, "failed", _line_of(error), memory=peaks())
            return BenchmarkRow(preset, rounds=tuple(rounds), memory=peaks(), first_clip_seconds=first)


def describe(device: Any) -> Environment:
    """This machine, as far as a pipeline on `device` sees it."""
    import os

    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    else:
        name = f"{platform.machine()} CPU"
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Environment(
        device=name,
        memory_gib=memory_gib,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


def _line_of(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
