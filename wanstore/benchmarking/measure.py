"""One clip, measured: seconds of each stage by the device's own clock, and the peak of memory."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from wanstore.benchmarking.nvml import DeviceWatch, watch_device
from wanstore.benchmarking.presets import Preset
from wanstore.benchmarking.report import Memory, Round
from wanstore.generation import generate, write_clip
from wanstore.interfaces import Progress

if TYPE_CHECKING:
    import numpy
    import torch

PROMPT = "Two anthropomorphic cats in comfy boxing gear fight intensely on a spotlighted stage."


def measure_clip(
    pipe: Any, preset: Preset, *, progress: Progress, seed: int = 0
) -> tuple[Round, numpy.ndarray[Any, Any]]:
    """Make one clip and write it away; its stages, and its frames (frames × height × width × 3, 0 to 1).

    Stages are told apart by marks in the device's stream, so that nothing waits for being measured.
    """
    clock = _Clock(pipe.device)
    began = time.perf_counter()
    with _watched(pipe, clock.mark):
        frames = generate(pipe, PROMPT, preset, seed=seed, progress=_Steps(progress, clock.mark))
    generated = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_clip(frames, Path(folder, "clip.mp4"))
    ended = time.perf_counter()
    marks = clock.seconds()
    steps = [at for name, at in marks if name == "step"]
    encoded = max(at for name, at in marks if name == "encoded")
    found = dict(marks)
    return Round(
        text_encoding=encoded - found["encode"],
        steps=tuple(after - before for before, after in zip([encoded, *steps], steps, strict=False)),
        decoding=found["decoded"] - found["decode"],
        writing=ended - generated,
        seconds=ended - began,
    ), frames


@contextlib.contextmanager
def watch_memory(device: torch.device) -> Iterator[Watch]:
    """While the block runs; what is given tells the peaks since it began, and the energy."""
    with watch_device(device) as gpu:
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # proc(5), clear_refs: only Linux lets a process start its peak anew
                Path("/proc/self/clear_refs").write_text("5")
        yield Watch(device, gpu)


@attrs.frozen
class Watch:
    """A device that is watched; `gpu` is None where NVML does not tell."""

    device: torch.device
    gpu: DeviceWatch | None

    def peaks(self) -> Memory:
        """Since the watch began."""
        if self.device.type != "cuda":
            return Memory(_peak_of_process())
        import torch

        return Memory(
            torch.cuda.max_memory_allocated(self.device) / 2**30,
            torch.cuda.max_memory_reserved(self.device) / 2**30,
            self.gpu.peak_gib if self.gpu else None,
        )

    def joules(self) -> float | None:
        """A counter: only differences mean something."""
        return self.gpu.joules() if self.gpu else None


class _Clock:
    """Marks in the device's stream; on a CPU, by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """This is the moment `name`."""
        if self._device.type == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> list[tuple[str, float]]:
        """The marks in order, with their seconds since the first."""
        first = self._marks[0][1]
        if self._device.type == "cuda":
            self._marks[-1][1].synchronize()
            return [(name, first.elapsed_time(event) / 1000) for name, event in self._marks]
        return [(name, at - first) for name, at in self._marks]


@contextlib.contextmanager
def _watched(pipe: Any, mark: Callable[[str], None]) -> Iterator[None]:
    """Mark the beginning and end of text encoding and of decoding."""

    def between(before: str, function: Callable[..., Any], after: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            mark(before)
            result = function(*args, **kwargs)
            mark(after)
            return result

        return watched

    pipe.encode_prompt = between("encode", pipe.encode_prompt, "encoded")
    pipe.vae.decode = between("decode", pipe.vae.decode, "decoded")
    try:
        yield
    finally:
        del pipe.encode_prompt, pipe.vae.decode


class _Steps:
    """Marks each denoising step on its way to the progress."""

    def __init__(self, progress: Progress, mark: Callable[[str], None]) -> None:
        self._progress, self._mark = progress, mark

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self._progress.start(task, total, unit)

    def advance(self, task: str, amount: int) -> None:
        self._mark("step")
        self._progress.advance(task, amount)

    def finish(self, task: str) -> None:
        self._progress.finish(task)

    def message(self, text: str) -> None:
        self._progress.message(text)


def _peak_of_process() -> float:
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
