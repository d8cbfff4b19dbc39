"""Chunks to buffers in this process's own memory: read in place, but for what has to be cast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from wanstore._formats._safetensors import ITEM_BYTES
from wanstore.transfer._chunk_queue import ChunkQueue, Times
from wanstore.transfer._layout import BufferLayout, Chunk, Part
from wanstore.transfer._read_queue import THREADS
from wanstore.transfer._readers import Reader, copy_bytes, slot_bytes

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CAST_ELEMENTS = 32_000
"""torch casts fewer than 32,768 elements in the calling thread; for more, every thread would start a pool."""


@contextmanager
def move_to_host(
    reader: Reader, layout: BufferLayout, buffers: list[torch.Tensor], queue: ChunkQueue
) -> Iterator[Times]:
    """Move all chunks, by several threads, before the block. Raises `DamagedError`."""
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS, "wanstore-read") as pool:
        threads = [pool.submit(_move, reader, layout, buffers, queue) for _ in range(min(THREADS, len(queue)))]
        for thread in threads:
            thread.result()
    yield Times(time.perf_counter() - began, 0.0)


def elements_of(part: Part, layout: BufferLayout, buffers: list[torch.Tensor]) -> torch.Tensor:
    """The elements that a part fills."""
    count = (part.stop - part.start) // ITEM_BYTES[layout.buffers[part.buffer].stored]
    return buffers[part.buffer][part.element : part.element + count]


def _move(reader: Reader, layout: BufferLayout, buffers: list[torch.Tensor], queue: ChunkQueue) -> None:
    slot = torch.empty(0, dtype=torch.uint8)
    try:
        while chunk := queue.take():
            data = reader.at_once(chunk)
            for part in chunk.parts:
                kind, target = layout.buffers[part.buffer], elements_of(part, layout, buffers)
                if kind.stored == kind.final:
                    _read(reader, chunk, part, data, target.view(torch.uint8).numpy().data)
                    continue
                slot = slot if len(slot) else torch.empty(slot_bytes(layout), dtype=torch.uint8)
                held = slot[: part.stop - part.start]
                _read(reader, chunk, part, data, held.numpy().data)
                _cast(held.view(DTYPES[kind.stored]), target)
            queue.done(chunk)
    except BaseException:
        queue.stop()  # the other threads end too
        reader.stop()
        raise


def _read(reader: Reader, chunk: Chunk, part: Part, data: memoryview | None, target: memoryview) -> None:
    if data is None:
        reader.read(chunk.file, part.start, target)
    else:
        copy_bytes(data[part.start - chunk.start : part.stop - chunk.start], target)


def _cast(values: torch.Tensor, target: torch.Tensor) -> None:
    for begin in range(0, len(values), _CAST_ELEMENTS):
        target[begin : begin + _CAST_ELEMENTS] = values[begin : begin + _CAST_ELEMENTS]
