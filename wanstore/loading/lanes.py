"""One thread's way for pieces, from a source to buffers: the interface, and the way into this process's memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

import torch

from wanstore.loading.layout import Layout, Part, Piece
from wanstore.loading.sources import ROOM_BYTES, Source
from wanstore.safetensors_format import ITEM_BYTES

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
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
            target = elements_of(part, self._layout, self._buffers)
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


@contextmanager
def host_lanes(source: Source, layout: Layout, buffers: list[torch.Tensor], count: int) -> Iterator[list[HostLane]]:
    """`count` ways into memory."""
    yield [HostLane(source, layout, buffers) for _ in range(count)]


def elements_of(part: Part, layout: Layout, buffers: list[torch.Tensor]) -> torch.Tensor:
    """The elements that a part fills."""
    count = (part.stop - part.start) // ITEM_BYTES[layout.buffers[part.buffer].stored]
    return buffers[part.buffer][part.element : part.element + count]
