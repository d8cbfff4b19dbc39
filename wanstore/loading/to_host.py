"""Pieces to buffers in this process's own memory: read in place, but for what has to be cast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from wanstore._safetensors_format import ITEM_BYTES
from wanstore.loading.layout import Layout, Part
from wanstore.loading.reads import THREADS
from wanstore.loading.sources import Source, room_bytes
from wanstore.loading.work import Times, Work

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CAST_ELEMENTS = 32_000
"""torch casts fewer than 32,768 elements in the calling thread; for more, every thread would start a pool."""


@contextmanager
def move_to_host(source: Source, layout: Layout, buffers: list[torch.Tensor], work: Work) -> Iterator[Times]:
    """Move all pieces, by several threads, before the block. Raises `DamagedError`."""
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS, "wanstore-read") as pool:
        threads = [pool.submit(_move, source, layout, buffers, work) for _ in range(min(THREADS, len(work)))]
        for thread in threads:
            thread.result()
    yield Times(time.perf_counter() - began, 0.0)


def elements_of(part: Part, layout: Layout, buffers: list[torch.Tensor]) -> torch.Tensor:
    """The elements that a part fills."""
    count = (part.stop - part.start) // ITEM_BYTES[layout.buffers[part.buffer].stored]
    return buffers[part.buffer][part.element : part.element + count]


def _move(source: Source, layout: Layout, buffers: list[torch.Tensor], work: Work) -> None:
    room = torch.empty(0, dtype=torch.uint8)
    try:
        while piece := work.take():
            for part in piece.parts:
                kind, target = layout.buffers[part.buffer], elements_of(part, layout, buffers)
                if kind.stored == kind.final:
                    source.read(piece.source, part.start, target.view(torch.uint8).numpy().data)
                    continue
                room = room if len(room) else torch.empty(room_bytes(layout), dtype=torch.uint8)
                held = room[: part.stop - part.start]
                source.read(piece.source, part.start, held.numpy().data)
                _cast(held.view(DTYPES[kind.stored]), target)
            work.done(piece)
    except BaseException:
        work.stop()  # the other threads end too
        raise


def _cast(values: torch.Tensor, target: torch.Tensor) -> None:
    for begin in range(0, len(values), _CAST_ELEMENTS):
        target[begin : begin + _CAST_ELEMENTS] = values[begin : begin + _CAST_ELEMENTS]
