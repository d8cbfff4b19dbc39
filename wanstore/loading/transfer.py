"""Bytes from a source into buffers on a device, by several threads at once and with little memory between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from wanstore.errors import DeviceError
from wanstore.loading.cuda_lanes import cuda_lanes
from wanstore.loading.device import pick_device
from wanstore.loading.lanes import DTYPES, Lane, host_lanes
from wanstore.loading.layout import Layout, Piece
from wanstore.loading.report import TransferRecord
from wanstore.loading.sources import Source

THREADS = 16
"""What it takes to read page cache at several times a PCIe link's rate, and to keep a network file system busy."""


class Transfer:
    """Moves all pieces of a layout; begins with the block, and goes on while the block does other things.

    `tensors()` waits for the end. Leaving the block early stops the threads; none outlives it, and neither
    does anything that they opened. Host memory: a few pieces a thread.
    """

    def __init__(
        self,
        source: Source,
        layout: Layout,
        device: str | torch.device | None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`device` is picked by the transfer's own thread, since a GPU's start takes a while: see `pick_device`."""
        self._source, self._layout, self._wanted, self._advance = source, layout, device, advance
        self._device = torch.device("cpu")
        self._work: deque[Piece] = deque(layout.pieces)
        self._buffers: list[torch.Tensor] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="wanstore-transfer")
        self.began = self._prepared = self._ended = 0.0
        self._read_seconds = self._wait_seconds = 0.0
        self._uncached_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._work.clear()
        self._thread.join()
        self._buffers.clear()

    def buffers(self) -> list[torch.Tensor]:
        """The filled buffers of the layout, each of its final dtype and one dimension.

        Raises `DamagedError` when a file can't be read to its end or changed meanwhile, `DeviceError` when
        the device has too little memory or fails.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return list(self._buffers)

    @property
    def device(self) -> torch.device:
        """Where the buffers are, once `buffers()` has returned."""
        return self._device

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the layout, as views of its buffers. Waits and raises as `buffers` does."""
        buffers = self.buffers()
        return {
            name: buffers[place.buffer][place.start : place.start + place.elements].view(place.shape)
            for name, place in self._layout.places.items()
        }

    @property
    def record(self) -> TransferRecord:
        """What it took, once it is over."""
        return TransferRecord(
            size_bytes=sum(piece.stop - piece.start for piece in self._layout.pieces),
            uncached_bytes=self._uncached_bytes,
            seconds=self._ended - self.began,
            prepare_seconds=self._prepared - self.began,
            read_seconds=self._read_seconds,
            wait_seconds=self._wait_seconds,
        )

    def _run(self) -> None:
        self.began = time.perf_counter()
        try:
            self._device = pick_device(self._wanted)
            self._uncached_bytes = self._source.look(self._layout.pieces)
            self._buffers = _allocate(self._layout, self._device)
            self._prepared = time.perf_counter()
            self._move()
            if self._error is None:
                self._source.finish()
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits for it
            self._fail(error)
        finally:
            if self._error is not None:
                self._buffers.clear()  # the lanes hold the same list
            self._source.close()
            self._ended = time.perf_counter()

    def _move(self) -> None:
        if not self._work:
            return
        count = min(THREADS, len(self._work))
        make = cuda_lanes if self._device.type == "cuda" else host_lanes
        with make(self._source, self._layout, self._buffers, count) as lanes:
            threads = [threading.Thread(target=self._drive, args=(lane,), name="wanstore-lane") for lane in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self._read_seconds = sum(lane.read_seconds for lane in lanes) / count
            self._wait_seconds = sum(lane.wait_seconds for lane in lanes) / count

    def _drive(self, lane: Lane) -> None:
        try:
            with lane:
                while piece := self._next():
                    lane.move(piece)
                    self._advance(piece.stop - piece.start)
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits for it
            self._fail(error)

    def _next(self) -> Piece | None:
        try:
            return self._work.popleft()
        except IndexError:
            return None

    def _fail(self, error: BaseException) -> None:
        """Keep the first error and stop all threads."""
        self._work.clear()
        if self._error is None:
            # A traceback would keep frames alive, and with them gigabytes of buffers.
            self._error = _told(error, self._device, self._layout.size_bytes).with_traceback(None)


def _allocate(layout: Layout, device: torch.device) -> list[torch.Tensor]:
    return [torch.empty(buffer.elements, dtype=DTYPES[buffer.final], device=device) for buffer in layout.buffers]


def _told(error: BaseException, device: torch.device, needed_bytes: int) -> BaseException:
    """The error as its reader needs it: what torch says of a device becomes a `DeviceError`."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return DeviceError(
            f"{device} has no room for {needed_bytes / 1e9:.1f} GB of weights{_free(device)}",
            "Free some of it, or use a larger one",
        )
    if isinstance(error, RuntimeError):
        return DeviceError(f"{device} failed while weights were moved to it ({str(error).splitlines()[0]})",
                           "Look at nvidia-smi and the kernel's log; a new process may work")  # fmt: skip
    return error


def _free(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f": {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
