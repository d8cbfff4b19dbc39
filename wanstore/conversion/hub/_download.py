"""One file of the Hub on its way to the disk: in pieces, over several connections, hashed, and resumable."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import attrs

from wanstore._files import sync
from wanstore.conversion.hub._http import Http, Limits, NoRangesError, PassingError, stopped_error
from wanstore.conversion.hub._leftovers import drop, drop_unless_plain
from wanstore.errors import DamagedError
from wanstore.interfaces import Progress

_SAVE_BYTES = 4 << 20
_HASH_BYTES = 1 << 20
_FETCHES = 3
_MAX_NOTES_BYTES = 16 << 20
"""A thousand times what the largest file needs."""


@attrs.frozen
class TreeFile:
    """A file of the tree. `sha256` is the Hub's for a large file; a small one has git's blob id only."""

    path: str
    size: int
    oid: str
    sha256: str | None

    def hasher(self) -> Any:
        if self.sha256:
            return hashlib.sha256()
        # SHA-1 is what git names its blobs by; here it guards against damage, not against an attacker.
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    def agrees(self, hasher: Any) -> bool:
        return bool(hasher.hexdigest() == (self.sha256 or self.oid))


@attrs.define
class _Piece:
    """Bytes of a file still to come."""

    position: int
    stop: int


_News = queue.SimpleQueue[tuple[int, int] | BaseException]


class Download:
    """One file on its way: `PATH.part` holds its bytes, `PATH.pieces` says which of them have arrived.

    Pieces come over several connections, each written in its place. The caller's thread records what was
    written, and hashes the file as far as it has no gap. After a kill, the record tells the next
    run what to fetch; the hash over all bytes decides whether they are right.
    """

    def __init__(self, file: TreeFile, url: str, target: Path, http: Http, limits: Limits, progress: Progress) -> None:
        self._file, self._url, self._target = file, url, target
        self._http, self._limits, self._progress = http, limits, progress
        self._part = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.pieces")
        self._ranges = True
        self._stopping = False
        self._ended = threading.Event()

    def stop(self) -> None:
        """Make `run`, in another thread, end soon with an error; what has arrived stays."""
        self._stopping = True
        self._ended.set()

    def already_there(self) -> bool:
        """Whether an earlier run finished the file, judged by its content; a damaged file is deleted."""
        drop_unless_plain(self._target, written=False)
        if not self._target.exists():
            return False
        hasher = self._file.hasher()
        with self._target.open("rb") as file:
            size = _hash(file.fileno(), 0, self._file.size + 1, hasher)
        if size == self._file.size and self._file.agrees(hasher):
            self._progress.advance(self._file.path, size)
            self._notes.unlink(missing_ok=True)
            return True
        self._progress.message(f"{self._file.path}: the copy there is damaged; fetching it again")
        self._target.unlink()
        return False

    def run(self) -> None:
        """Fetch the file. Raises `DamagedError` when the bytes are wrong each time."""
        for _ in range(_FETCHES):
            if self._fetched_right():
                sync(self._part)
                self._part.rename(self._target)
                sync(self._target.parent)
                self._notes.unlink(missing_ok=True)
                return
            self._notes.unlink(missing_ok=True)
            self._part.unlink()
            self._progress.advance(self._file.path, -self._file.size)
            self._progress.message(f"{self._file.path}: the bytes are not the Hub's; fetching it again")
        raise DamagedError(
            f"{self._file.path} arrived damaged {_FETCHES} times: its hash is not the Hub's",
            "Try again, or from another network",
        )

    def _fetched_right(self) -> bool:
        drop_unless_plain(self._part, written=True)
        drop_unless_plain(self._notes, written=True)
        if not self._part.exists():
            self._notes.unlink(missing_ok=True)
        part = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(part).st_size
            if size > self._file.size:
                os.ftruncate(part, self._file.size)
            have = self._noted(size)
            self._progress.advance(self._file.path, sum(stop - start for start, stop in have))
            if have:
                self._progress.message(f"{self._file.path}: resuming an earlier run")
            hasher = self._file.hasher()
            try:
                return self._fill(part, have, hasher)
            except NoRangesError:
                self._ranges = False
                self._progress.message(f"{self._file.path}: the server sends whole files only; using one connection")
                return self._fill(part, have, self._file.hasher())
        finally:
            os.close(part)

    def _noted(self, size: int) -> list[tuple[int, int]]:
        """What earlier runs noted as arrived. A note cut short by a kill does not match."""
        notes = b""
        if self._notes.exists():
            with self._notes.open("rb") as file:
                notes = file.read(_MAX_NOTES_BYTES)
        if len(notes) == _MAX_NOTES_BYTES or not re.fullmatch(rb"[][0-9\n-]*", notes):
            drop(self._notes, "it is damaged")
            return []
        spans = [(int(start), int(stop)) for start, stop in re.findall(rb"\[(\d{1,19})-(\d{1,19})\]", notes)]
        return _merged((start, stop) for start, stop in spans if start < stop <= min(size, self._file.size))

    def _fill(self, part: int, have: list[tuple[int, int]], hasher: Any) -> bool:
        """Fetch the gaps in `have`, which grows meanwhile; whether the whole then has the right hash."""
        news: _News = queue.SimpleQueue()
        self._ended = threading.Event()
        if self._stopping:
            raise stopped_error(self._file.path)
        connections = self._limits.connections if self._ranges else 1
        with ThreadPoolExecutor(connections) as pool, self._notes.open("a") as notes:
            try:
                # Takes the notes' block while there is room, so that a full disk can still be noted.
                notes.write("\n")
                notes.flush()
                for piece in self._missing(have):
                    pool.submit(self._work, part, piece, news)
                hashed = 0
                while True:
                    hashed = _hash(part, hashed, have[0][1] if have and have[0][0] == 0 else 0, hasher)
                    if hashed >= self._file.size:
                        return self._file.agrees(hasher)
                    self._take(news.get(), have, notes)
            finally:
                self._ended.set()
                pool.shutdown(cancel_futures=True)
                while not news.empty():
                    if isinstance(late := news.get(), tuple):
                        self._take(late, have, notes)

    def _take(self, new: tuple[int, int] | BaseException, have: list[tuple[int, int]], notes: TextIO) -> None:
        if isinstance(new, BaseException):
            raise new
        notes.write(f"[{new[0]}-{new[1]}]\n")
        notes.flush()
        have[:] = _merged([*have, new])
        self._progress.advance(self._file.path, new[1] - new[0])

    def _missing(self, have: list[tuple[int, int]]) -> list[_Piece]:
        step = self._limits.piece_bytes if self._ranges else self._file.size
        starts, stops = [0] + [stop for _, stop in have], [start for start, _ in have] + [self._file.size]
        return [
            _Piece(position, min(position + step, stop))
            for start, stop in zip(starts, stops, strict=True)
            for position in range(start, stop, max(1, step))
        ]

    def _work(self, part: int, piece: _Piece, news: _News) -> None:
        path, ended = self._file.path, self._ended
        try:
            while piece.position < piece.stop:
                self._http.retrying(path, self._progress, lambda: self._receive(part, piece, news, ended), ended)
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            news.put(error)

    def _receive(self, part: int, piece: _Piece, news: _News, ended: threading.Event) -> None:
        """Bytes of a piece into their place, until it is whole or the connection fails; `news` receives what came."""
        started = noted = piece.position
        try:
            for chunk in self._http.stream(self._url, started, piece.stop, self._file.size, ranges=self._ranges):
                if ended.is_set():
                    raise stopped_error(self._file.path)
                _write(part, chunk, piece.position)
                piece.position += len(chunk)
                if piece.position - noted >= _SAVE_BYTES:
                    news.put((noted, piece.position))
                    noted = piece.position
        except PassingError:
            # Getting on, however brokenly, is no reason to give up.
            if piece.position - started < _SAVE_BYTES:
                raise
        finally:
            if piece.position > noted:
                news.put((noted, piece.position))


def _merged(spans: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _hash(descriptor: int, start: int, stop: int, hasher: Any) -> int:
    """Hash the bytes from `start` to `stop`, or to the file's end; where it ended."""
    while start < stop and (block := os.pread(descriptor, min(_HASH_BYTES, stop - start), start)):
        hasher.update(block)
        start += len(block)
    return start
