"""One thread's way for pieces: from a source to buffers in memory, or through pinned memory to those on a GPU."""

from __future__ import annotations

import mmap
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

import torch

from wanstore.errors import DeviceError
from wanstore.loading.layout import Layout, Part, Piece
from wanstore.loading.sources import ROOM_BYTES, Source
from wanstore.safetensors_format import ITEM_BYTES

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_SLOTS = 2
"""Pieces of memory a lane: while one is copied to the device, the next is read."""
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

    def __init__(self) -> None:
        memory = mmap.mmap(-1, ROOM_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self.room = memoryview(memory)
        self.copied = torch.cuda.Event(blocking=True)  # without, waiting threads would burn the cores
        self._pinned = False

    def pin(self) -> None:
        """Pin the memory, the first time."""
        if self._pinned:
            return
        status = torch.cuda.cudart().cudaHostRegister(self.bytes.data_ptr(), ROOM_BYTES, 0)
        if int(status) != 0:
            raise DeviceError(f"The driver pins no memory ({status})", "Allow locked memory: ulimit -l unlimited")
        self._pinned = True

    def unpin(self) -> None:
        """Take the pin off again; the memory is freed with the slot."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr())
            self._pinned = False


class CudaLane:
    """To buffers on a GPU, through two pinned slots and a stream of its own. Casts happen on the device."""

    def __init__(self, source: Source, layout: Layout, buffers: list[torch.Tensor], scratch: torch.Tensor) -> None:
        """`scratch` is memory on the device for one piece that has to be cast."""
        self._source, self._layout, self._buffers, self._scratch = source, layout, buffers, scratch
        self._slots: list[Slot] = []
        self._turn = 0
        self._entered = ExitStack()
        self.read_seconds = self.wait_seconds = 0.0

    def __enter__(self) -> Self:
        device = self._buffers[0].device
        self._entered.enter_context(torch.cuda.device(device))
        self._stream = torch.cuda.Stream(device)
        self._entered.enter_context(torch.cuda.stream(self._stream))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._entered:
            try:
                self._stream.synchronize()
            finally:
                for slot in self._slots:
                    slot.unpin()
                self._slots.clear()

    def move(self, piece: Piece) -> None:
        slot = self._next_slot()
        began = time.perf_counter()
        first = self._source.fill(piece, slot.room)
        self.read_seconds += time.perf_counter() - began
        slot.pin()
        for part in piece.parts:
            begin = first + part.start - piece.start
            self._copy(part, slot.bytes[begin : begin + part.stop - part.start])
        slot.copied.record(self._stream)

    def _next_slot(self) -> Slot:
        if len(self._slots) < _SLOTS:
            self._slots.append(Slot())
            return self._slots[-1]
        slot = self._slots[self._turn % _SLOTS]
        self._turn += 1
        began = time.perf_counter()
        slot.copied.synchronize()
        self.wait_seconds += time.perf_counter() - began
        return slot

    def _copy(self, part: Part, held: torch.Tensor) -> None:
        kind = self._layout.buffers[part.buffer]
        target = _elements(part, self._layout, self._buffers)
        if kind.stored == kind.final:
            target.view(torch.uint8).copy_(held, non_blocking=True)
        else:
            moved = self._scratch[: len(held)]
            moved.copy_(held, non_blocking=True)
            target.copy_(moved.view(DTYPES[kind.stored]))


def host_lanes(source: Source, layout: Layout, buffers: list[torch.Tensor], count: int) -> list[Lane]:
    """`count` ways into memory."""
    return [HostLane(source, layout, buffers) for _ in range(count)]


def cuda_lanes(source: Source, layout: Layout, buffers: list[torch.Tensor], count: int) -> list[Lane]:
    """`count` ways to the GPU that holds the buffers."""
    casts = any(buffer.stored != buffer.final for buffer in layout.buffers)
    # One allocation, in the caller's stream: made in a lane's own stream it would stay that stream's for ever.
    scratch = torch.empty(count, ROOM_BYTES if casts else 0, dtype=torch.uint8, device=buffers[0].device)
    torch.cuda.current_stream(scratch.device).synchronize()
    return [CudaLane(source, layout, buffers, scratch[number]) for number in range(count)]


def _elements(part: Part, layout: Layout, buffers: list[torch.Tensor]) -> torch.Tensor:
    count = (part.stop - part.start) // ITEM_BYTES[layout.buffers[part.buffer].stored]
    return buffers[part.buffer][part.element : part.element + count]
