"""Reads under way, many at a time, each into room of its own: by the C library's threads, or by Python's."""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Protocol

from wanstore.errors import NotSupportedError
from wanstore.loading.layout import Piece
from wanstore.loading.sources import FileSource, Source

THREADS = 16
"""What it takes to read page cache at several times a PCIe link's rate, and to keep a network file system busy."""


class Reads(Protocol):
    """Fills rooms with pieces. A room is known by its number, and has one read under way at most."""

    def start(self, room: int, piece: Piece) -> None:
        """Begin to read the piece into the room."""

    def finished(self) -> list[tuple[int, int]]:
        """Reads that are over, one at least: which room, and where in it the piece begins.

        Raises `DamagedError` when one failed.
        """

    def close(self) -> None:
        """Return when nothing is under way any more."""


class ThreadReads:
    """By threads of Python's own: for any source, on any system."""

    def __init__(self, source: Source, rooms: list[memoryview]) -> None:
        self._source, self._rooms = source, rooms
        self._over: SimpleQueue[tuple[int, int | BaseException]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(THREADS, "wanstore-read")

    def start(self, room: int, piece: Piece) -> None:
        self._pool.submit(self._read, room, piece)

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
        return [(room, first) for room, first in over if isinstance(first, int)]

    def close(self) -> None:
        self._pool.shutdown()

    def _read(self, room: int, piece: Piece) -> None:
        try:
            self._over.put((room, self._source.fill(piece, self._rooms[room])))
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits for the read
            self._over.put((room, error))


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


class LibraryReads:
    """By the threads that the C library keeps for POSIX asynchronous I/O. Raises `NotSupportedError` without glibc.

    They need no interpreter: sixteen threads of Python's hand its lock around for every piece, and took a third
    longer for a load. The library reads one descriptor once at a time, so each room has its own.
    """

    def __init__(self, source: FileSource, rooms: list[memoryview]) -> None:
        self._quick, self._slow = _glibc()
        self._source, self._rooms = source, rooms
        self._requests = [_Request(notify=_NO_SIGNAL, buffer=_address(room)) for room in rooms]
        self._descriptors: list[tuple[int, int]] = [(-1, -1)] * len(rooms)  # our own, and what it is a copy of
        self._under_way: dict[int, tuple[Piece, int]] = {}

    def start(self, room: int, piece: Piece) -> None:
        descriptor, first, size = self._source.where(piece)
        request = self._requests[room]
        request.descriptor, request.offset, request.size = self._own(room, descriptor), first, size
        self._under_way[room] = piece, first
        if self._quick.aio_read(ctypes.byref(request)) != 0:  # it takes no more just now
            request.status = request.result = 0  # over, without a byte: the source reads the piece itself then

    def finished(self) -> list[tuple[int, int]]:
        while True:
            over = self._over()
            if over:
                return [self._take(room) for room in over]
            self._wait()

    def close(self) -> None:
        while self._under_way:
            for room in self._over():
                self._quick.aio_return(ctypes.byref(self._requests[room]))
                del self._under_way[room]
            if self._under_way:
                self._wait()
        for own, _ in self._descriptors:
            if own >= 0:
                os.close(own)
        self._descriptors.clear()

    def _own(self, room: int, descriptor: int) -> int:
        own, copy_of = self._descriptors[room]
        if copy_of != descriptor:
            own = os.dup(descriptor) if own < 0 else os.dup2(descriptor, own, inheritable=False)
            self._descriptors[room] = own, descriptor
        return own

    def _over(self) -> list[int]:
        return [room for room in self._under_way if self._requests[room].status != errno.EINPROGRESS]

    def _take(self, room: int) -> tuple[int, int]:
        piece, first = self._under_way.pop(room)
        count = self._quick.aio_return(ctypes.byref(self._requests[room]))
        self._source.complete(piece, first, max(0, count), self._rooms[room])
        return room, piece.start - first

    def _wait(self) -> None:
        pending = [ctypes.pointer(self._requests[room]) for room in self._under_way]
        self._slow.aio_suspend((ctypes.POINTER(_Request) * len(pending))(*pending), len(pending), None)


def start_reads(source: Source, rooms: list[memoryview]) -> Reads:
    """The quickest way for the source on this system."""
    if isinstance(source, FileSource):
        try:
            return LibraryReads(source, rooms)
        except NotSupportedError:
            pass
    return ThreadReads(source, rooms)


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


def _address(room: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(room))
