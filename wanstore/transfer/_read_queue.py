"""Many reads in progress at once, each into its own slot: by the C library's threads, or by Python's."""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Protocol

from wanstore.errors import NotSupportedError
from wanstore.transfer._layout import Chunk
from wanstore.transfer._readers import FileReader, Reader

THREADS = 16
"""What it takes to read page cache at several times a PCIe link's rate, and to keep a network file system busy."""


class ReadQueue(Protocol):
    """Fills slots with chunks. A slot is known by its number, and has at most one read in progress."""

    def start(self, slot: int, chunk: Chunk) -> None:
        """Begin to read the chunk into the slot."""

    def finished(self) -> list[tuple[int, int]]:
        """Wait for at least one read; each finished one as its slot and where in it the chunk begins.

        Raises `DamagedError` when one failed.
        """

    def close(self) -> None:
        """Return when no read is in progress."""


class ThreadReadQueue:
    """By threads of Python's own: for any reader, on any system."""

    def __init__(self, reader: Reader, slots: list[memoryview]) -> None:
        self._reader, self._slots = reader, slots
        self._over: SimpleQueue[tuple[int, int | BaseException]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(len(slots), "wanstore-read")

    def start(self, slot: int, chunk: Chunk) -> None:
        self._pool.submit(self._read, slot, chunk)

    def finished(self) -> list[tuple[int, int]]:
        over = [self._over.get()]
        while True:
            try:
                over.append(self._over.get_nowait())
            except Empty:
                break
        for _, first in over:
            if isinstance(first, BaseException):
                raise first
        return [(slot, first) for slot, first in over if isinstance(first, int)]

    def close(self) -> None:
        self._reader.stop()
        self._pool.shutdown()

    def _read(self, slot: int, chunk: Chunk) -> None:
        try:
            self._over.put((slot, self._reader.fill(chunk, self._slots[slot])))
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits for the read
            self._over.put((slot, error))


class _Request(ctypes.Structure):
    """`struct aiocb` of glibc, <aio.h>, on 64-bit machines."""

    _fields_ = [
        ("descriptor", ctypes.c_int),
        ("operation", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("signal_value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("signal_reserved", ctypes.c_char * 48),
        ("next", ctypes.c_void_p),
        ("absolute_priority", ctypes.c_int),
        ("policy", ctypes.c_int),
        ("status", ctypes.c_int),  # what aio_error returns
        ("result", ctypes.c_ssize_t),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_char * 32),
    ]


_NO_SIGNAL = 1
"""SIGEV_NONE"""


class AioReadQueue:
    """By the threads that the C library keeps for POSIX asynchronous I/O. Raises `NotSupportedError` without glibc.

    They need no interpreter: sixteen threads of Python's hand its lock around for every chunk, and took a third
    longer for a load. The library does one read at a time for each descriptor, so each slot has its own.
    """

    def __init__(self, reader: FileReader, slots: list[memoryview]) -> None:
        self._quick, self._slow = _glibc()
        self._reader, self._slots = reader, slots
        self._requests = [_Request(notify=_NO_SIGNAL, buffer=_address(slot)) for slot in slots]
        self._descriptors: list[tuple[int, int]] = [(-1, -1)] * len(slots)  # our own, and what it is a copy of
        self._under_way: dict[int, tuple[Chunk, int]] = {}

    def start(self, slot: int, chunk: Chunk) -> None:
        descriptor, first, size = self._reader.where(chunk)
        request = self._requests[slot]
        request.descriptor, request.offset, request.size = self._own(slot, descriptor), first, size
        self._under_way[slot] = chunk, first
        if self._quick.aio_read(ctypes.byref(request)) != 0:  # it takes no more just now
            request.status = request.result = 0  # over, without a byte: the reader reads the chunk itself then

    def finished(self) -> list[tuple[int, int]]:
        while True:
            over = self._over()
            if over:
                return [self._take(slot) for slot in over]
            self._wait()

    def close(self) -> None:
        while self._under_way:
            for slot in self._over():
                self._quick.aio_return(ctypes.byref(self._requests[slot]))
                del self._under_way[slot]
            if self._under_way:
                self._wait()
        for own, _ in self._descriptors:
            if own >= 0:
                os.close(own)
        self._descriptors.clear()

    def _own(self, slot: int, descriptor: int) -> int:
        own, copy_of = self._descriptors[slot]
        if copy_of != descriptor:
            own = os.dup(descriptor) if own < 0 else os.dup2(descriptor, own, inheritable=False)
            self._descriptors[slot] = own, descriptor
        return own

    def _over(self) -> list[int]:
        return [slot for slot in self._under_way if self._requests[slot].status != errno.EINPROGRESS]

    def _take(self, slot: int) -> tuple[int, int]:
        chunk, first = self._under_way.pop(slot)
        count = self._quick.aio_return(ctypes.byref(self._requests[slot]))
        self._reader.complete(chunk, first, max(0, count), self._slots[slot])
        return slot, chunk.start - first

    def _wait(self) -> None:
        pending = [ctypes.pointer(self._requests[slot]) for slot in self._under_way]
        self._slow.aio_suspend((ctypes.POINTER(_Request) * len(pending))(*pending), len(pending), None)


def open_read_queue(reader: Reader, slots: list[memoryview]) -> ReadQueue:
    """The quickest way for the reader on this system."""
    if isinstance(reader, FileReader):
        try:
            return AioReadQueue(reader, slots)
        except NotSupportedError:
            pass
    return ThreadReadQueue(reader, slots)


def _glibc() -> tuple[ctypes.PyDLL, ctypes.CDLL]:
    """The C library, once for calls that are quick and keep the interpreter's lock, once for those that wait."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        name = ""
    library = "librt.so.1" if name.startswith("glibc 2.") and int(name.split(".")[1]) < 34 else None
    if not name.startswith("glibc") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotSupportedError("This C library's asynchronous I/O is not known")
    quick, slow = ctypes.PyDLL(library), ctypes.CDLL(library)
    quick.aio_return.restype = ctypes.c_ssize_t
    return quick, slow


def _address(slot: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(slot))
