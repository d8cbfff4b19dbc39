"""Chunks to buffers on a GPU: straight from page cache, else through a ring of slots in pinned memory."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import torch

from wanstore._formats._safetensors import ITEM_BYTES
from wanstore.transfer._chunk_queue import ChunkQueue, Times
from wanstore.transfer._cuda_driver import CudaDriver
from wanstore.transfer._layout import CHUNK_BYTES, BufferLayout, Chunk
from wanstore.transfer._read_queue import ReadQueue, open_read_queue
from wanstore.transfer._readers import FileReader, Reader, StreamReader, slot_bytes
from wanstore.transfer._registered import Windows, copy_registered, fits_windows
from wanstore.transfer._to_host import DTYPES, elements_of

SLOTS, DISK_SLOTS = 16, 8
"""Slots of pinned memory, each being read into or copied from: 128 MiB, which is quickly pinned.

From a disk it is 256 MiB, in larger chunks.
"""
STREAM_SLOTS = 64
"""The same for what comes over a network, where each request waits and S3 gives each some 90 MB/s: 512 MiB."""


@contextmanager
def move_to_cuda(
    reader: Reader, layout: BufferLayout, buffers: list[torch.Tensor], queue: ChunkQueue
) -> Iterator[Times]:
    """Move all chunks before the block, and release the memory used after it. Casts happen on the device.

    Raises `DamagedError` or `DeviceError`.
    """
    if len(queue) == 0:
        yield Times(0.0, 0.0)
        return
    driver = CudaDriver(buffers[0].device)
    copies = Copies(layout, buffers, driver)
    with ExitStack() as stack:
        times = Times(0.0, 0.0)
        if isinstance(reader, FileReader) and _goes_straight(reader, layout, driver):
            windows = stack.enter_context(closing(Windows(reader.files, driver)))
            stack.callback(copies.wait)
            times = copy_registered(queue, windows, copies)
        if count := min(_slots(reader, layout), len(queue)):
            ring = stack.enter_context(closing(Ring(count, slot_bytes(layout), driver)))
            reads = stack.enter_context(closing(open_read_queue(reader, ring.slots)))
            stack.callback(copies.wait)
            times = _pump(queue, ring, reads, copies)
        yield times


def _slots(reader: Reader, layout: BufferLayout) -> int:
    if isinstance(reader, StreamReader):
        return STREAM_SLOTS
    return SLOTS if layout.chunk_bytes <= CHUNK_BYTES else DISK_SLOTS


def _goes_straight(reader: FileReader, layout: BufferLayout, driver: CudaDriver) -> bool:
    """Whether to let the device read page cache itself."""
    return reader.all_cached and driver.can_register and fits_windows(layout.chunks)


def _pump(queue: ChunkQueue, ring: Ring, reads: ReadQueue, copies: Copies) -> Times:
    """Keep every slot reading, copying, or free for the next chunk, until all is copied."""
    read_seconds = wait_seconds = 0.0
    free, reading, copying = deque(range(len(ring.slots))), dict[int, Chunk](), deque[int]()
    while True:
        while free and (chunk := queue.take()):
            reading[free[0]] = chunk
            reads.start(free.popleft(), chunk)
        began = time.perf_counter()
        if reading:
            finished = reads.finished()
            read_seconds += time.perf_counter() - began
            for slot, first in finished:
                chunk = reading.pop(slot)
                ring.pin()
                copies.copy(chunk, ring.address(slot) + first - chunk.start)
                ring.used(slot, copies.stream)
                copying.append(slot)
                queue.done(chunk)
        elif copying:
            ring.wait(copying[0])
            wait_seconds += time.perf_counter() - began
        else:
            return Times(read_seconds, wait_seconds, "pinned memory")
        while copying and ring.is_free(copying[0]):
            free.append(copying.popleft())


class Ring:
    """Slots of memory, one after the other, pinned before the first copy.

    Pinning pages that are there already, and huge ones at that, is ten times as quick as asking the driver for
    pinned memory: so the first chunks are read into it before.
    """

    def __init__(self, slots: int, slot_bytes: int, driver: CudaDriver) -> None:
        self._driver, self._slot_bytes, self._pinned = driver, slot_bytes, False
        memory = mmap.mmap(-1, slots * slot_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._size = len(memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with ExitStack() as held:
            self._copied = [self._make_event(held) for _ in range(slots)]
            self._held = held.pop_all()
        whole = memoryview(memory)
        self.slots = [whole[begin : begin + slot_bytes] for begin in range(0, len(memory), slot_bytes)]

    def _make_event(self, held: ExitStack) -> int:
        event = self._driver.make_event()
        held.callback(self._driver.drop_event, event)
        return event

    def pin(self) -> None:
        """Pin the memory, once."""
        if not self._pinned:
            self._driver.pin(self._address, self._size)
            self._held.callback(self._driver.unpin, self._address)
            self._pinned = True

    def address(self, slot: int) -> int:
        """Where the slot begins."""
        return self._address + slot * self._slot_bytes

    def used(self, slot: int, stream: int) -> None:
        """The slot is free again when the stream has got this far."""
        self._driver.record(self._copied[slot], stream)

    def is_free(self, slot: int) -> bool:
        """Whether it is."""
        return self._driver.has_come(self._copied[slot])

    def wait(self, slot: int) -> None:
        """Return when it is."""
        self._driver.wait(self._copied[slot])

    def close(self) -> None:
        """Take the pin off, whatever else fails; the memory is freed with the last slot."""
        self._held.close()


class Copies:
    """Copies from pinned or registered memory to buffers, in their own stream."""

    def __init__(self, layout: BufferLayout, buffers: list[torch.Tensor], driver: CudaDriver) -> None:
        self._layout, self._buffers, self._driver = layout, buffers, driver
        self._addresses = [buffer.data_ptr() for buffer in buffers]
        casts = any(buffer.stored != buffer.final for buffer in layout.buffers)
        # In the caller's stream: made in the other one it would stay that one's for ever.
        self._scratch = torch.empty(slot_bytes(layout) if casts else 0, dtype=torch.uint8, device=buffers[0].device)
        self._stream = driver.make_stream()

    @property
    def stream(self) -> int:
        """The stream, as the driver knows it."""
        return self._stream.cuda_stream

    def copy(self, chunk: Chunk, file_address: int) -> None:
        """Begin to copy a chunk from memory, in which its file's first byte would be, or is, at that address."""
        for part in chunk.parts:
            kind, size = self._layout.buffers[part.buffer], part.stop - part.start
            if kind.stored == kind.final:
                target = self._addresses[part.buffer] + part.element * ITEM_BYTES[kind.final]
                self._driver.copy(target, file_address + part.start, size, self._stream.cuda_stream)
            else:
                self._driver.copy(self._scratch.data_ptr(), file_address + part.start, size, self._stream.cuda_stream)
                with torch.cuda.stream(self._stream):
                    stored = self._scratch[:size].view(DTYPES[kind.stored])
                    elements_of(part, self._layout, self._buffers).copy_(stored)

    def wait(self) -> None:
        """Return when all is copied."""
        self._stream.synchronize()
