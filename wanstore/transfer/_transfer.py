"""Bytes from a reader into buffers on a device, by several threads at once and with little memory between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from wanstore._error_translation import first_line, lacks_memory
from wanstore.errors import DeviceError, DeviceMemoryError
from wanstore.transfer._chunk_queue import ChunkQueue, Times
from wanstore.transfer._device import pick_device
from wanstore.transfer._layout import BufferLayout
from wanstore.transfer._readers import Reader, StreamReader
from wanstore.transfer._record import TransferRecord
from wanstore.transfer._to_cuda import move_to_cuda
from wanstore.transfer._to_host import DTYPES, move_to_host


class Transfer:
    """Moves all chunks of a layout. It begins with the block, and continues while the block does other things.

    `tensors()` waits for the end. Leaving the block early stops the threads; none outlives it, and neither
    does anything that they opened. Host memory: a few dozen chunks.
    """

    def __init__(
        self,
        reader: Reader,
        layout: BufferLayout,
        device: str | torch.device | None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`device` is picked by the transfer's own thread, since a GPU's start takes a while: see `pick_device`."""
        self._reader, self._layout, self._wanted = reader, layout, device
        self._device = torch.device("cpu")
        self._queue = ChunkQueue(layout.chunks, advance)
        self._buffers: list[torch.Tensor] = []
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wanstore-transfer")
        self.began = self._prepared = self._ended = 0.0
        self._times = Times(0.0, 0.0)
        self._uncached_bytes: int | None = 0

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C while it starts: it runs all the same
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        self._buffers.clear()

    def _stop(self) -> None:
        self._queue.stop()
        self._reader.stop()
        if self._thread.ident is None:  # it was never begun, or is about to begin
            self._over.wait(1.0)
        if self._thread.ident is not None:
            self._over.wait()
            self._thread.join()

    def buffers(self) -> list[torch.Tensor]:
        """The filled buffers of the layout, each of its final dtype and one dimension.

        Raises `DamagedError` when a file can't be read to its end or changed meanwhile, `DeviceError` when
        the device has too little memory or fails.
        """
        self._over.wait()
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
            size_bytes=sum(chunk.stop - chunk.start for chunk in self._layout.chunks),
            uncached_bytes=self._uncached_bytes,
            seconds=self._ended - self.began,
            prepare_seconds=self._prepared - self.began,
            read_seconds=self._times.read_seconds,
            wait_seconds=self._times.wait_seconds,
            way=self._times.way,
            streamed=isinstance(self._reader, StreamReader),
        )

    def _run(self) -> None:
        self.began = time.perf_counter()
        try:
            self._device = pick_device(self._wanted)
            self._uncached_bytes = self._reader.look(self._layout.chunks)
            self._buffers += _allocate(self._layout, self._device)
            self._prepared = time.perf_counter()
            move = move_to_cuda if self._device.type == "cuda" else move_to_host
            with move(self._reader, self._layout, self._buffers, self._queue) as self._times:
                self._reader.finish()
                self._end()  # releasing the memory used need not be waited for
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits for it
            self._buffers.clear()
            # A traceback would keep frames alive, and with them gigabytes of buffers.
            self._error = _told(error, self._device, self._layout.size_bytes).with_traceback(None)
        finally:
            self._reader.close()
            self._end()

    def _end(self) -> None:
        if not self._over.is_set():
            self._ended = time.perf_counter()
            self._over.set()


def _allocate(layout: BufferLayout, device: torch.device) -> list[torch.Tensor]:
    return [torch.empty(buffer.elements, dtype=DTYPES[buffer.final], device=device) for buffer in layout.buffers]


def _told(error: BaseException, device: torch.device, needed_bytes: int) -> BaseException:
    """The error as its reader needs it: what torch says of a device becomes a `DeviceError`."""
    if lacks_memory(error):
        return DeviceMemoryError(
            f"{device} has no room for {needed_bytes / 1e9:.1f} GB of weights{_free(device)}",
            "Free some memory, or use a larger device",
        )
    if isinstance(error, RuntimeError):
        return DeviceError(f"{device} failed while weights were moved to it ({first_line(error)})",
                           "Look at nvidia-smi and the kernel's log; a new process may work")  # fmt: skip
    return error


def _free(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # it is worse than out of memory
        return ""
    return f": {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
