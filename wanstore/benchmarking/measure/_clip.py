"""One clip, measured: seconds of each phase by the device's own clock, and the peak of memory."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from wanstore.benchmarking.measure._nvml import DeviceWatch, watch_device
from wanstore.benchmarking.rows import MemoryPeaks, Round
from wanstore.generation import generate, write_clip
from wanstore.interfaces import Progress
from wanstore.memory._plan import OUTPUT
from wanstore.presets import Preset

if TYPE_CHECKING:
    import numpy
    import torch

PROMPT = "Two anthropomorphic cats in comfy boxing gear fight intensely on a spotlighted stage."
_PHASE_ENDED = {
    "encode": None, "encoded": "text_encoding", "decode": "denoising", "frames": "decoding", "decoded": None,
}  # fmt: skip
"""The phase that ends at a mark; None where only the time between phases ends."""


def measure_clip(
    pipe: Any,
    preset: Preset,
    *,
    take: int,
    progress: Progress,
    seed: int = 0,
    watch: Watch | None = None,
    warm_up: bool = False,
) -> tuple[Round, numpy.ndarray[Any, Any]]:
    """Make one clip and write it to a file; return its phases and frames (frames × height × width × 3, 0 to 1).

    Phases are separated by events in the device's stream, so that measuring waits for nothing. `watch` is called as
    each one ends. `take` is a number in the prompt. Of a `warm_up` one frame is written: that sets up what writes,
    and the others take many seconds that nobody counts.
    """
    clock = _Clock(pipe.device)

    def mark(name: str) -> None:
        clock.mark(name)
        if watch:
            watch.ended(_PHASE_ENDED[name])

    began = time.perf_counter()
    with _watched(pipe, mark):
        frames = generate(pipe, f"{PROMPT} Take {take}.", preset, seed=seed, progress=_Steps(progress, clock.mark))
    generated = time.perf_counter()
    if watch:
        watch.ended(OUTPUT)
    with tempfile.TemporaryDirectory() as folder:
        write_clip(frames[:1] if warm_up else frames, Path(folder, "clip.mp4"))
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
    """Watch memory and energy while the block runs. The result gives the peaks since the block began."""
    with watch_device(device) as gpu:
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # proc(5), clear_refs: only Linux lets a process reset its peak
                Path("/proc/self/clear_refs").write_text("5")
        yield Watch(device, gpu)


@attrs.define
class Watch:
    """A device that is being watched; `gpu` is None without NVML.

    `phase_peaks_gib` is what torch's allocator handed out at most in each phase that has ended; empty on a CPU.
    """

    device: torch.device
    gpu: DeviceWatch | None
    phase_peaks_gib: dict[str, float] = attrs.field(factory=dict)
    _allocated_gib: float = 0.0
    _reserved_gib: float = 0.0

    def ended(self, phase: str | None) -> None:
        """A phase ends here, or what is none. It reads the allocator's own counters: the device is not asked."""
        if self.device.type != "cuda":
            return
        import torch

        peak = self._read_peaks()
        if phase:
            self.phase_peaks_gib[phase] = max(peak, self.phase_peaks_gib.get(phase, 0.0))
        torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> MemoryPeaks:
        """Since the watch began."""
        if self.device.type != "cuda":
            return MemoryPeaks(_peak_of_process())
        self._read_peaks()
        return MemoryPeaks(self._allocated_gib, self._reserved_gib, self.gpu.peak_gib if self.gpu else None)

    def joules(self) -> float | None:
        """A counter: only differences mean something."""
        return self.gpu.joules() if self.gpu else None

    def _read_peaks(self) -> float:
        """What was allocated at most since the last phase; the most of all phases is remembered."""
        import torch

        allocated = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._allocated_gib = max(self._allocated_gib, allocated)
        self._reserved_gib = max(self._reserved_gib, torch.cuda.max_memory_reserved(self.device) / 2**30)
        return allocated


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
    """Mark the beginning and end of text encoding and of decoding, and when the frames are there.

    The last is not the end of `vae.decode` where the text encoder sets out on its way back there.
    """

    def between(before: str | None, function: Callable[..., Any], after: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if before:
                mark(before)
            result = function(*args, **kwargs)
            mark(after)
            return result

        return watched

    pipe.encode_prompt = between("encode", pipe.encode_prompt, "encoded")
    pipe.vae.decode = between("decode", pipe.vae.decode, "decoded")
    pipe.vae._decode = between(None, pipe.vae._decode, "frames")
    try:
        yield
    finally:
        del pipe.encode_prompt, pipe.vae.decode, pipe.vae._decode


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
