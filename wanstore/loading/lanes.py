"""One thread's way for pieces: from a source to buffers in memory, or through pinned memory to those on a GPU."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

import torch

from wanstore.loading.cuda_driver import CudaDriver
from wanstore.loading.layout import Layout, Part, Piece
from wanstore.loading.sources import ROOM_BYTES, Source
from wanstore.safetensors_format import ITEM_BYTES

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_SLOTS = 4
"""Pieces of memory a lane: while some are copied to the device, the next is read."""
_CAST_ELEMENTS = 32_000
"""torch casts fewer than 32,768 elements in the calling thread; for more, every lane would start a thread pool."""


class Lane(Protocol):
    """Moves pieces, one after another, in the thread that has entered it."""

    read_seconds: float
    wait_seconds: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for what is still under way."""

    def move(self, piece: Piece) -> None: ...


class HostLane:
    """To buffers in this process's memory: read in place, but what has to be cast."""

    def __init__(self, source: Source, layout: Layout, buffers: list[torch.Tensor]) -> None:
        self._source, self._layout, self._buffers = source, layout, buffers
        self._room = torch.empty(0, dtype=torch.uint8)
        self.read_seconds = self.wait_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def move(self, piece: Piece) -> None:
        began = time.perf_counter()
        for part in piece.parts:
            kind = self._layout.buffers[part.buffer]
            target = _elements(part, self._layout, self._buffers)
            if kind.stored == kind.final:
                self._source.read(piece.source, part.start, target.view(torch.uint8).numpy().data)
            else:
                self._cast(piece.source, part, DTYPES[kind.stored], target)
        self.read_seconds += time.perf_counter() - began

    def _cast(self, source: int, part: Part, stored: torch.dtype, target: torch.Tensor) -> None:
        if not len(self._room):
            self._room = torch.empty(ROOM_BYTES, dtype=torch.uint8)
        room = self._room[: part.stop - part.start]
        self._source.read(source, part.start, room.numpy().data)
        values = room.view(stored)
        for begin in range(0, len(values), _CAST_ELEMENTS):
            target[begin : begin + _CAST_ELEMENTS] = values[begin : begin + _CAST_ELEMENTS]


class Slot:
    """Memory for one piece that a GPU can copy from by itself, once it is pinned.

    Pinning pages that are there already, and huge ones at that, is ten times as quick as asking the driver
    for pinned memory. So they are read into first.
    """

    def __init__(self, driver: CudaDriver) -> None:
        memory = mmap.mmap(-1, ROOM_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.room = memoryview(memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.copied = driver.make_event()
        self.pinned = False
        self._driver = driver

    def pin(self) -> None:
        """Pin the memory, the first time."""
        if not self.pinned:
            self._driver.pin(self.address, ROOM_BYTES)
            self.pinned = True

    def close(self) -> None:
        """Take the pin off again; the memory is freed with the slot."""
        self._driver.drop_event(self.copied)
        if self.pinned:
            self._driver.unpin(self.address)


class CudaLane:
    """To buffers on a GPU, through a few pinned slots and a stream of its own. Casts happen on the device."""

    def __init__(
        self, source: Source, layout: Layout, buffers: list[torch.Tensor], scratch: torch.Tensor, driver: CudaDriver
    ) -> None:
        """`scratch` is memory on the device for one piece that has to be cast."""
        self._source, self._layout, self._buffers, self._scratch = source, layout, buffers, scratch
        self._addresses = [buffer.data_ptr() for buffer in buffers]
        self._driver = driver
        self._slots: deque[Slot] = deque()
        self._entered = ExitStack()
        self._stream = 0
        self.read_seconds = self.wait_seconds = 0.0

    def __enter__(self) -> Self:
        self._entered.callback(self._close)
        self._stream = self._entered.enter_context(self._driver.stream())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered.close()

    def move(self, piece: Piece) -> None:
        slot = self._next_slot()
        began = time.perf_counter()
        first = self._source.fill(piece, slot.room)
        self.read_seconds += time.perf_counter() - began
        slot.pin()
        held = slot.address + first - piece.start
        for part in piece.parts:
            self._copy(part, held + part.start)
        self._driver.record(slot.copied, self._stream)

    def _next_slot(self) -> Slot:
        if len(self._slots) < _SLOTS:
            self._slots.append(Slot(self._driver))
        else:
            self._slots.rotate(-1)
        slot = self._slots[-1]
        if slot.pinned:
            began = time.perf_counter()
            self._driver.wait(slot.copied)
            self.wait_seconds += time.perf_counter() - began
        return slot

    def _copy(self, part: Part, held: int) -> None:
        kind = self._layout.buffers[part.buffer]
        size = part.stop - part.start
        if kind.stored == kind.final:
            target = self._addresses[part.buffer] + part.element * ITEM_BYTES[kind.final]
            self._driver.copy(target, held, size, self._stream)
        else:
            self._driver.copy(self._scratch.data_ptr(), held, size, self._stream)
            _elements(part, self._layout, self._buffers).copy_(self._scratch[:size].view(DTYPES[kind.stored]))

    def _close(self) -> None:
        """After the stream has come to its end."""
        while self._slots:
            self._slots.pop().close()


def host_lanes(source: Source, layout: Layout, buffers: list[torch.Tensor], count: int) -> list[Lane]:
    """`count` ways into memory."""
    return [HostLane(source, layout, buffers) for _ in range(count)]


def cuda_lanes(source: Source, layout: Layout, buffers: list[torch.Tensor], count: int) -> list[Lane]:
    """`count` ways to the GPU that holds the buffers."""
    casts = any(buffer.stored != buffer.final for buffer in layout.buffers)
    # One allocation, in the caller's stream: made in a lane's own stream it would stay that stream's for ever.
    scratch = torch.empty(count, ROOM_BYTES if casts else 0, dtype=torch.uint8, device=buffers[0].device)
    driver = CudaDriver(scratch.device)
    return [CudaLane(source, layout, buffers, scratch[number], driver) for number in range(count)]


def _elements(part: Part, layout: Layout, buffers: list[torch.Tensor]) -> torch.Tensor:
    count = (part.stop - part.start) // ITEM_BYTES[layout.buffers[part.buffer].stored]
    return buffers[part.buffer][part.element : part.element + count]
