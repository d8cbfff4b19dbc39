"""What is missing of a file, fetched by one way: in pieces, several at once, each written in its place."""

from __future__ import annotations

import mmap
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import attrs

from wanstore.conversion.hub._http import Http, Limits, PassingError, stopped_error
from wanstore.conversion.hub._part import Arrived, Part
from wanstore.conversion.hub._ways import Way, WayError
from wanstore.errors import UnreachableError
from wanstore.interfaces import Progress

_BLOCK_BYTES = 8 << 20
_WORTH_BYTES = 4 << 20
"""So much of a piece begins a new count of attempts: getting on, however brokenly, is no reason to give up."""
_COLLAPSE = 20
"""A way that is so many times slower than it was has collapsed."""
_LOOK_SECONDS = 0.1
_LEAST_PAUSE_SECONDS = 1.0


@attrs.define
class _Piece:
    """Bytes of a file still to come."""

    position: int
    stop: int


class Pieces:
    """Fetches what a part lacks, by one way, in `run`.

    Threads receive and write; the caller's thread notes what they wrote, hashes it, and watches over the way.
    `all_out` is called when every piece is handed out: the next file may have the streams that become free.
    """

    def __init__(
        self,
        path: str,
        part: Part,
        way: Way,
        all_out: Callable[[], None],
        http: Http,
        limits: Limits,
        progress: Progress,
    ) -> None:
        self._path, self._part, self._way, self._all_out = path, part, way, all_out
        self._http, self._progress = http, progress
        self._watch = _Watch(path, way, limits)
        self._news: queue.SimpleQueue[Arrived | BaseException] = queue.SimpleQueue()
        self._buffers: queue.SimpleQueue[mmap.mmap | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._handing_out = threading.Lock()
        # Cut at whole steps, where the disk takes them past the page cache.
        self._todo = iter(
            [
                _Piece(max(start, position), min(position + way.piece_bytes, stop))
                for start, stop in part.missing()
                for position in range(start // way.piece_bytes * way.piece_bytes, stop, way.piece_bytes)
            ]
        )

    def run(self, stopping: threading.Event) -> None:
        """Fetch all. Raises `WayError` if the way does not lead on, `UnreachableError` also when `stopping` is set."""
        part, streams = self._part, self._way.streams
        try:
            # For each stream one to fill, and one that waits to be hashed.
            for _ in range(2 * streams):
                self._buffers.put(mmap.mmap(-1, max(1, min(_BLOCK_BYTES, self._way.piece_bytes))))
            with ThreadPoolExecutor(streams) as pool:
                try:
                    for _ in range(streams):
                        pool.submit(self._work)
                    more = part.hash_on(self._buffers.put)
                    while not part.whole:
                        # What was written is noted before anything else: a kill must not cost it.
                        while new := self._next(stopping, wait=not more):
                            more = True
                            self._note(new)
                            part.keep(new, streams, self._buffers.put)
                        more = part.hash_on(self._buffers.put)
                finally:
                    self._end()
        finally:
            part.let_go()
            while not self._news.empty():
                if isinstance(late := self._news.get(), Arrived):
                    self._note(late)

    def _next(self, stopping: threading.Event, *, wait: bool) -> Arrived | None:
        if stopping.is_set():
            raise stopped_error(self._path)
        try:
            new = self._news.get(wait, _LOOK_SECONDS)
        except queue.Empty:
            if wait:
                self._watch.look()
            return None
        if isinstance(new, BaseException):
            raise new
        self._watch.heard(new.size)
        return new

    def _note(self, new: Arrived) -> None:
        self._part.note(new.start, new.stop)
        self._progress.advance(self._path, new.size)

    def _end(self) -> None:
        self._ended.set()
        self._way.stop()
        for _ in range(self._way.streams):
            self._buffers.put(None)

    def _next_piece(self) -> _Piece | None:
        with self._handing_out:
            piece = next(self._todo, None)
        if piece is None:
            self._all_out()
        return piece

    def _work(self) -> None:
        """Fetch pieces until there are none."""
        try:
            while piece := self._next_piece():
                self._fetch(piece)
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            if isinstance(error, UnreachableError) and self._watch.on:
                error = WayError(error.what)
            self._news.put(error)

    def _fetch(self, piece: _Piece) -> None:
        while piece.position < piece.stop:
            self._http.retrying(
                self._path, self._progress, lambda: self._receive(piece), self._ended, self._way.attempts
            )

    def _receive(self, piece: _Piece) -> None:
        """Bytes of a piece into their place, until it is whole or the connection fails; the caller hears what came."""
        started, size = piece.position, 0
        buffer: mmap.mmap | None = None
        try:
            for data in self._way.receive(piece.position, piece.stop):
                if self._ended.is_set():  # also where data is skipped, and none is left to look at
                    raise stopped_error(self._path)
                while data:
                    if not (buffer := buffer or self._buffers.get()):
                        raise stopped_error(self._path)
                    fits = min(len(data), len(buffer) - size)
                    buffer[size : size + fits] = data[:fits]
                    size, data = size + fits, data[fits:]
                    if size == len(buffer):
                        self._write(piece, buffer, size)
                        buffer, size = None, 0
        except PassingError:
            if piece.position + size - started < _WORTH_BYTES:
                raise
        finally:
            if buffer:
                self._write(piece, buffer, size)

    def _write(self, piece: _Piece, buffer: mmap.mmap, size: int) -> None:
        self._part.write(memoryview(buffer)[:size], piece.position)
        self._news.put(Arrived(piece.position, size, buffer))
        piece.position += size


class _Watch:
    """Notices when a way without time limits of its own falls silent, or becomes far slower than it was."""

    def __init__(self, path: str, way: Way, limits: Limits) -> None:
        self._path = path
        self.on = way.most_silent_seconds is not None
        self._silence = way.most_silent_seconds or 0.0
        self._window = limits.pace_seconds
        self._last = self._since = self._looked = time.monotonic()
        self._bytes = 0
        self._best = 0.0

    def heard(self, size: int) -> None:
        """Bytes came. Raises `WayError` when they come too slowly by now."""
        self._last = self._now()
        self._bytes += size
        seconds = self._last - self._since
        if not self.on or seconds < self._window:
            return
        rate = self._bytes / seconds
        self._best = max(self._best, rate)
        if rate * _COLLAPSE < self._best:
            raise WayError(f"{self._path}: the rate fell from {self._best / 1e6:.1f} to {rate / 1e6:.1f} MB/s")
        self._since, self._bytes = self._last, 0

    def look(self) -> None:
        """Nothing came for now. Raises `WayError` when that has lasted too long."""
        silent = self._now() - self._last
        if self.on and silent > self._silence:
            raise WayError(f"{self._path}: no piece arrived for {silent:.0f} s")

    def _now(self) -> float:
        """The time. When nobody had asked for long, we hashed or were suspended: that is not held against the way."""
        now = time.monotonic()
        pause = now - self._looked - _LOOK_SECONDS
        if pause > _LEAST_PAUSE_SECONDS:  # during a shorter one pieces keep arriving
            self._last, self._since = self._last + pause, self._since + pause
        self._looked = now
        return now
