"""Chunks to buffers on a GPU straight from page cache: nothing is copied on the host.

Files are mapped, windows of the mappings are registered with NVIDIA's driver, and the device reads the page cache
itself. Nobody here touches the mapped bytes, so a file that shrinks meanwhile is no SIGBUS. No mapping is left when the
transfer ends: a memory snapshot would not keep it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from typing import Protocol

from wanstore.transfer._chunk_queue import ChunkQueue, Times
from wanstore.transfer._layout import Chunk
from wanstore.transfer._page_cache import MAP_FAILED, libc
from wanstore.transfer._weight_file import WeightFile

WINDOW_BYTES = 512 << 20
"""Registered at a time, while the device copies from the window before. The driver does 36 GB/s so, and no more with
several threads. Of smaller windows there are more, and each waits for the interpreter's lock, with which a load's other
thread is busy."""


class Driver(Protocol):
    """What this needs of `CudaDriver`."""

    def register(self, address: int, size: int) -> bool: ...
    def unpin_all(self, addresses: Sequence[int]) -> None: ...


class Copier(Protocol):
    """What this needs of `Copies`."""

    def copy(self, chunk: Chunk, file_address: int) -> None: ...
    def wait(self) -> None: ...


def fits_windows(chunks: Sequence[Chunk]) -> bool:
    """Whether each chunk lies in one window: so in files whose headers end at a multiple of 8 bytes, as they should."""
    return all(chunk.start // WINDOW_BYTES == (chunk.stop - 1) // WINDOW_BYTES for chunk in chunks)


def copy_registered(queue: ChunkQueue, windows: Windows, copies: Copier) -> Times:
    """Copy chunks until there is none left, or a window is refused: the rest, in order, stays in the queue."""
    register_seconds = 0.0
    while chunk := queue.take():
        began = time.perf_counter()
        address = windows.enter(chunk)
        register_seconds += time.perf_counter() - began
        if address is None:  # refused, or the file has become shorter: whoever reads it will say so
            queue.put_back(chunk)
            break
        copies.copy(chunk, address)
        queue.done(chunk)
    began = time.perf_counter()
    copies.wait()
    return Times(register_seconds, time.perf_counter() - began, "registered page cache")


class Windows:
    """Windows of files in page cache, registered one after the other, and all of them until they are closed.

    Letting go of one takes the driver's lock from the next: 0.15 s for 14 GB, and nobody needs to wait for it then.
    """

    def __init__(self, files: Sequence[WeightFile], driver: Driver) -> None:
        self._files, self._driver = files, driver
        self._mapped: dict[int, tuple[int, int]] = {}
        """Address and size, by file number."""
        self._current: tuple[int, int] | None = None
        self._registered: list[int] = []
        """Their addresses."""

    def enter(self, chunk: Chunk) -> int | None:
        """Where the chunk's file begins in memory, with the chunk registered; None if that cannot be."""
        window = chunk.file, chunk.start // WINDOW_BYTES
        if window != self._current and not self._register(*window):
            return None
        self._current = window
        address, size = self._mapped[chunk.file]
        return address if chunk.stop <= size else None

    def close(self) -> None:
        """Register and map nothing any more. All copies must be over."""
        self._driver.unpin_all(self._registered)
        for address, size in self._mapped.values():
            libc().munmap(address, size)

    def _register(self, number: int, place: int) -> bool:
        """Register a window; False where its file cannot be mapped so far, or the driver refuses."""
        if number not in self._mapped and not self._map(number):
            return False
        mapped, size = self._mapped[number]
        begin = place * WINDOW_BYTES
        pages = -(-min(WINDOW_BYTES, size - begin) // mmap.PAGESIZE)
        if pages <= 0 or not self._driver.register(mapped + begin, pages * mmap.PAGESIZE):
            return False
        self._registered.append(mapped + begin)
        return True

    def _map(self, number: int) -> bool:
        descriptor = self._files[number].descriptor
        size = os.fstat(descriptor).st_size
        address = libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == MAP_FAILED:  # so it is of an empty file, too
            return False
        self._mapped[number] = int(address), size
        return True
