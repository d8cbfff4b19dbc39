"""Chunks to buffers on a GPU straight from page cache: nothing is copied on the host.

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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from wanstore.transfer._chunk_queue import ChunkQueue, Times
from wanstore.transfer._layout import Chunk
from wanstore.transfer._page_cache import MAP_FAILED, libc
from wanstore.transfer._weight_file import WeightFile

WINDOW_BYTES = 256 << 20
"""Registered at a time. The driver does 36 GB/s so. Of smaller ones there are more, and each hands the interpreter's
lock around, with which a load's other thread is busy."""
AHEAD, BEHIND = 3, 4
"""Windows that are registered ahead of the copies, and those that are still copied from."""
FEW_CORES = 4
"""With so many, copying through pinned memory keeps them all busy, and the load's other thread waits. With sixteen it
is as quick as this, and a little quicker."""
THREADS = 2
"""One waits for the interpreter's lock while the driver works for the other. More do not register faster."""


class Driver(Protocol):
    """What this needs of `CudaDriver`."""

    def enter_thread(self) -> None: ...
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


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # another system, an older control group, or no quota: "max"
        return cores


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
        if address is None:  # refused, or the file has become shorter: whoever reads it will say so
            queue.put_back(chunk)
            break
        copies.copy(chunk, address)
        queue.done(chunk)
    began = time.perf_counter()
    windows.finish(copies.stream)
    wait_seconds = time.perf_counter() - began
    return Times(register_seconds, wait_seconds, "registered page cache")


class Windows:
    """Windows of files in page cache, in the order of the chunks; each is registered until it was copied from."""

    def __init__(self, files: Sequence[WeightFile], chunks: Sequence[Chunk], driver: Driver) -> None:
        self._files, self._driver = files, driver
        self._mapped: dict[int, tuple[int, int]] = {}
        """Address and size, by file number."""
        self._coming = deque(dict.fromkeys(map(_window_of, chunks)))
        self._ahead: deque[tuple[tuple[int, int], int, Future[bool]]] = deque()
        """Windows under way: which, where they begin, and whether they are registered."""
        self._current: tuple[int, int] | None = None
        self._address = 0
        self._behind: deque[tuple[int, int]] = deque()
        """Windows whose copies were all asked for: address, and the event that comes when they are done."""
        self._leaving: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(THREADS, "wanstore-register", driver.enter_thread)

    def enter(self, chunk: Chunk, stream: int) -> int | None:
        """Where the chunk's file begins in memory, with the chunk registered; None if that cannot be."""
        window = _window_of(chunk)
        if window != self._current:
            self._leave(stream)
            while len(self._behind) > BEHIND:
                self._leaving.append(self._pool.submit(self._let_go, *self._behind.popleft()))
            while self._coming and len(self._ahead) < AHEAD and self._start(self._coming[0]):
                self._coming.popleft()
            if not self._ahead or self._ahead[0][0] != window or not self._ahead[0][2].result():
                return None
            self._current, self._address, _ = self._ahead.popleft()
        address, size = self._mapped[chunk.file]
        return address if chunk.stop <= size else None

    def finish(self, stream: int) -> None:
        """Return when all that was asked for is copied."""
        self._leave(stream)
        if self._behind:
            self._driver.wait(self._behind[-1][1])

    def close(self) -> None:
        """Register and map nothing any more."""
        self._pool.shutdown()
        for _, address, registered in self._ahead:
            if registered.result():
                self._driver.unpin(address)
        if self._current is not None:  # it failed in the middle of a window: its copies are over, or will never begin
            self._driver.unpin(self._address)
        for place in self._behind:
            self._let_go(*place)
        for address, size in self._mapped.values():
            libc().munmap(address, size)
        for future in self._leaving:
            future.result()

    def _start(self, window: tuple[int, int]) -> bool:
        """Begin to register a window; False where its file cannot be mapped so far."""
        number, place = window
        if number not in self._mapped:
            descriptor = self._files[number].descriptor
            size = os.fstat(descriptor).st_size
            address = libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
            if address == MAP_FAILED:  # so it is of an empty file, too
                return False
            self._mapped[number] = int(address), size
        mapped, size = self._mapped[number]
        begin = place * WINDOW_BYTES
        if begin >= size:
            return False
        pages = -(-min(WINDOW_BYTES, size - begin) // mmap.PAGESIZE)
        registered = self._pool.submit(self._driver.register, mapped + begin, pages * mmap.PAGESIZE)
        self._ahead.append((window, mapped + begin, registered))
        return True

    def _leave(self, stream: int) -> None:
        if self._current is not None:
            event = self._driver.make_event()
            self._driver.record(event, stream)
            self._behind.append((self._address, event))
            self._current = None

    def _let_go(self, address: int, event: int) -> None:
        self._driver.wait(event)
        self._driver.drop_event(event)
        self._driver.unpin(address)


def _window_of(chunk: Chunk) -> tuple[int, int]:
    return chunk.file, chunk.start // WINDOW_BYTES
