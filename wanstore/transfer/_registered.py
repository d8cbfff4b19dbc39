"""Chunks to buffers on a GPU straight from page cache: nothing is copied on the host, and one thread is enough.

Files are mapped, windows of the mappings are registered with NVIDIA's driver, and the device reads the page cache
itself. Nobody here touches the mapped bytes, so a file that shrinks meanwhile is no SIGBUS. No mapping is left when the
transfer ends: a memory snapshot would not keep it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from wanstore.transfer._chunk_queue import ChunkQueue, Times
from wanstore.transfer._layout import Chunk
from wanstore.transfer._page_cache import MAP_FAILED, libc
from wanstore.transfer._weight_file import WeightFile

WINDOW_BYTES = 64 << 20
"""Registered at a time: the driver does 36 GB/s so, and two thirds of it with a quarter of that."""
WINDOWS = 8
"""Registered at most, the oldest of them being copied from."""


class Driver(Protocol):
    """What this needs of `CudaDriver`."""

    def register(self, address: int, size: int) -> bool: ...
    def unpin(self, address: int) -> None: ...
    def make_event(self) -> int: ...
    def drop_event(self, event: int) -> None: ...
    def record(self, event: int, stream: int) -> None: ...
    def wait(self, event: int) -> None: ...


class Copier(Protocol):
    """What this needs of `Copies`."""

    @property
    def stream(self) -> int: ...
    def copy(self, chunk: Chunk, file_address: int) -> None: ...


def fits_windows(chunks: Sequence[Chunk]) -> bool:
    """Whether each chunk lies in one window: so in files whose headers end at a multiple of 8 bytes, as they should."""
    return all(chunk.start // WINDOW_BYTES == (chunk.stop - 1) // WINDOW_BYTES for chunk in chunks)


def copy_registered(queue: ChunkQueue, windows: Windows, copies: Copier) -> Times:
    """Copy chunks until there is none left, or a window is refused: the rest, in order, stays in the queue."""
    register_seconds = wait_seconds = 0.0
    while chunk := queue.take():
        began = time.perf_counter()
        address = windows.enter(chunk, copies.stream)
        register_seconds += time.perf_counter() - began
        if address is None:
            queue.put_back(chunk)
            break
        copies.copy(chunk, address)
        queue.done(chunk)
    began = time.perf_counter()
    windows.finish(copies.stream)
    wait_seconds = time.perf_counter() - began
    return Times(register_seconds, wait_seconds, "registered page cache")


class Windows:
    """Windows of files in page cache, which come in the files' order; each is registered until it was copied from."""

    def __init__(self, files: Sequence[WeightFile], driver: Driver) -> None:
        self._files, self._driver = files, driver
        self._mapped: dict[int, tuple[int, int]] = {}
        """Address and size, by file number."""
        self._current: tuple[int, int] | None = None
        self._address = 0
        self._left: deque[tuple[int, int]] = deque()
        """Windows whose copies were all asked for: address, and the event that comes when they are done."""

    def enter(self, chunk: Chunk, stream: int) -> int | None:
        """Where the chunk's file begins in memory, with the chunk registered; None if that is refused."""
        file = chunk.file, chunk.start // WINDOW_BYTES
        if file != self._current:
            self._leave(stream)
            while len(self._left) >= WINDOWS:
                self._let_go()
            if not self._register(*file):
                return None
            self._current = file
        return self._mapped[chunk.file][0]

    def finish(self, stream: int) -> None:
        """Return when all that was asked for is copied."""
        self._leave(stream)
        if self._left:
            self._driver.wait(self._left[-1][1])

    def close(self) -> None:
        """Register and map nothing any more."""
        if self._current is not None:  # it failed in the middle of a window: its copies are over, or will never begin
            self._driver.unpin(self._address)
            self._current = None
        while self._left:
            self._let_go()
        while self._mapped:
            libc().munmap(*self._mapped.popitem()[1])

    def _register(self, number: int, window: int) -> bool:
        if number not in self._mapped:
            descriptor = self._files[number].descriptor
            size = os.fstat(descriptor).st_size
            address = libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address == MAP_FAILED:
                return False
            self._mapped[number] = address, size
        address, size = self._mapped[number]
        begin = window * WINDOW_BYTES
        length = min(WINDOW_BYTES, size - begin)
        self._address = address + begin
        return self._driver.register(self._address, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE)

    def _leave(self, stream: int) -> None:
        if self._current is not None:
            event = self._driver.make_event()
            self._driver.record(event, stream)
            self._left.append((self._address, event))
            self._current = None

    def _let_go(self) -> None:
        address, event = self._left.popleft()
        self._driver.wait(event)
        self._driver.drop_event(event)
        self._driver.unpin(address)
