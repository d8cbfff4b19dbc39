"""Runs presets on a ready pipeline and measures them."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wanstore.benchmarking.presets import Preset
from wanstore.benchmarking.report import BenchmarkReport, BenchmarkRow
from wanstore.generation import generate
from wanstore.interfaces import Benchmarker, Progress, Quiet

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline

PROMPT = "Two anthropomorphic cats in comfy boxing gear fight intensely on a spotlighted stage."


class PipelineBenchmarker(Benchmarker):
    """Measures presets in this process: wall-clock time of a clip, and the peak memory while it was made."""

    def __init__(self, pipe: WanPipeline) -> None:
        self._pipe = pipe

    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> BenchmarkReport:
        progress = progress or Quiet()
        device: torch.device = self._pipe.device
        return BenchmarkReport(_describe(device), tuple(self._measure(p, device, progress) for p in presets))

    def _measure(self, preset: Preset, device: torch.device, progress: Progress) -> BenchmarkRow:
        peak_gib = _watch_memory(device)
        began = time.perf_counter()
        try:
            generate(self._pipe, PROMPT, preset, progress=progress)
        except (RuntimeError, MemoryError, ValueError) as error:  # out of memory is a row, not a crash
            return BenchmarkRow(preset, failure=str(error).splitlines()[0])
        return BenchmarkRow(preset, time.perf_counter() - began, peak_gib())


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU"


def _watch_memory(device: torch.device) -> Callable[[], float]:
    """Start anew to watch peak memory; the function returned tells it in GiB.

    On a GPU what torch's allocator handed out; on a CPU the process's peak resident set, which only Linux
    lets a process start anew (proc(5), clear_refs).
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**30
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_of_process


def _peak_of_process() -> float:
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
