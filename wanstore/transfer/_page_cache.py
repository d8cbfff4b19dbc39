"""Which parts of a file are in the page cache, and reading the others into it ahead of time."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from types import TracebackType
from typing import Self

from wanstore.transfer._weight_file import WeightFile

_READ_AHEAD_THREADS = 4
_BLOCK_BYTES = 8 << 20
_LOOKS = 16
MAP_FAILED = ctypes.c_void_p(-1).value


@cache
def can_tell() -> bool:
    """Whether this kernel's answers about page cache can be believed.

    gVisor's are that everything is in memory. So it is asked about a page that nobody has touched, which is not.
    """
    library = libc()
    address = library.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address == MAP_FAILED:
        return False
    try:
        return _in_memory(library, address) is False
    finally:
        library.munmap(address, mmap.PAGESIZE)


def _in_memory(library: ctypes.CDLL, address: int) -> bool | None:
    """Whether the page at `address` is in memory; None where the kernel does not say."""
    answer = ctypes.create_string_buffer(1)
    return None if library.mincore(address, mmap.PAGESIZE, answer) else bool(answer.raw[0] & 1)


@cache
def libc() -> ctypes.CDLL:
    """The C library, for calls on memory."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return library


def cached_spans(descriptor: int, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each span (first byte, end) of a file is in page cache, judged by its last page.

    The first page says little: reading a file's header brings it in, and some after it.

    Where this cannot be determined (see `can_tell`), all count as cached: then they are read through the cache, as
    usual. The kernel answers the same to somebody who could not write the file (mincore(2)).
    """
    size = os.fstat(descriptor).st_size
    if not spans or size == 0 or not can_tell():
        return [True] * len(spans)
    library, page = libc(), mmap.PAGESIZE
    address = library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == MAP_FAILED:
        return [True] * len(spans)
    try:
        return [_in_memory(library, address + (stop - 1) // page * page) is not False for _, stop in spans]
    finally:
        library.munmap(address, size)


def cached_share(descriptors: Sequence[int]) -> float:
    """How much of files is in page cache, from 0 to 1, by a look at some places of each."""
    found: list[bool] = []
    for descriptor in descriptors:
        size = os.fstat(descriptor).st_size
        found += cached_spans(descriptor, [(stop - 1, stop) for stop in range(size, 0, -max(size // _LOOKS, 1))])
    return sum(found) / len(found) if found else 1.0


class ReadAhead:
    """While the block runs, threads read what of the files is not in page cache yet, in order, and drop it.

    It fills the time until the bytes have somewhere to go: importing torch alone takes seconds. Where a file
    system caches nothing, nothing is gained or lost. Where nobody can tell what is cached, all of it is read: at worst
    some threads copy for nothing. Faults are left to the transfer that reads the bytes afterwards.
    """

    def __init__(self, files: Iterable[WeightFile]) -> None:
        self._work: deque[tuple[int, int]] = deque()
        for file in files:
            descriptor, size = file.descriptor, os.fstat(file.descriptor).st_size
            spans = [(start, min(size, start + _BLOCK_BYTES)) for start in range(0, size, _BLOCK_BYTES)]
            missing = zip(spans, cached_spans(descriptor, spans), strict=True)
            self._work += [(descriptor, start) for (start, _), cached in missing if not (cached and can_tell())]
        count = min(_READ_AHEAD_THREADS, len(self._work))
        self._threads = [threading.Thread(target=self._run, name="wanstore-ahead") for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._work.clear()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        block = memoryview(bytearray(_BLOCK_BYTES))
        while self._work:
            try:
                descriptor, start = self._work.popleft()
                os.preadv(descriptor, [block], start)
            except (IndexError, OSError):
                return
