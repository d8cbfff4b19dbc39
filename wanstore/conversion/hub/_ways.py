"""The ways to a file's bytes: over Xet with many streams, over Xet with few, over HTTPS."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from wanstore.conversion.hub._deadline import Deadline
from wanstore.conversion.hub._http import Http, Limits
from wanstore.conversion.hub._part import TreeFile
from wanstore.conversion.hub._xet import Xet, XetWay
from wanstore.interfaces import Progress

_FEW_STREAMS = 2


class WayError(Exception):
    """This way does not lead on; another may."""


class Way(Protocol):
    """One way to the bytes of one file. `str` names it.

    `streams` pieces of `piece_bytes` may come at once, each tried `attempts` times. After `most_silent_seconds`
    without a finished block, if there is such a limit, the way is given up: it has no time limits of its own.
    """

    streams: int
    piece_bytes: int
    attempts: int
    most_silent_seconds: float | None

    def receive(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from `start` to `stop`, in order. Raises `PassingError` unless all of them came."""

    def stop(self) -> None:
        """Make every `receive` end soon."""


class HttpWay:
    """Ranges of a file, each over a connection of its own; without `ranges` whatever the server sends, over one."""

    def __init__(self, file: TreeFile, url: str, http: Http, limits: Limits, *, ranges: bool = True) -> None:
        self._file, self._url, self._http, self._ranges = file, url, http, ranges
        self.streams = limits.connections if ranges else 1
        self.piece_bytes = limits.http_piece_bytes if ranges else max(1, file.size)
        self.attempts = limits.attempts
        self.most_silent_seconds: float | None = None
        self._requests: set[Deadline] = set()

    def __str__(self) -> str:
        return f"HTTPS, {self.streams} connection" + "s" * (self.streams > 1)

    def receive(self, start: int, stop: int) -> Iterator[memoryview]:
        return self._http.stream(self._url, start, stop, self._file.size, ranges=self._ranges, requests=self._requests)

    def stop(self) -> None:
        for request in tuple(self._requests):
            request.end()


class Ways:
    """The ways to the files of a repo. One that failed is not tried again, for any of them."""

    def __init__(self, http: Http, limits: Limits, xet: Xet | None) -> None:
        self._http, self._limits, self._xet = http, limits, xet
        self._xet_streams = [limits.connections, min(_FEW_STREAMS, limits.connections)] if xet else []
        self._ranges = True
        self._told = ""
        self.line: deque[object] = deque()
        """Files that have pieces to hand out, in the order in which they were asked for: the first one does."""

    def best(self, file: TreeFile, url: str, progress: Progress, stopping: threading.Event) -> Way:
        """The best of those that are left."""
        left = self._xet_streams  # another file's thread may exchange it
        if file.xet and self._xet and left:
            if way := self._xet.way(file.xet, file.size, left[0], progress, stopping):
                return way
            self._xet_streams = []
        return HttpWay(file, url, self._http, self._limits, ranges=self._ranges)

    def failed(self, way: Way) -> None:
        """Take note of a way that did not lead on."""
        if isinstance(way, XetWay):
            self._xet_streams = [streams for streams in self._xet_streams if streams < way.streams]

    def no_ranges(self) -> None:
        """Take note of a server that sends whole files only."""
        self._ranges = False

    def news(self, way: Way) -> str:
        """What to tell of a way that large files take from now on; nothing if it is the one as before."""
        told, self._told = self._told, str(way)
        return f"Downloading over {way}" if self._told != told else ""
