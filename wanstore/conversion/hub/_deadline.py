"""An end to an answer that trickles: the client's own timeouts notice only silence."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any, Self


class Deadline:
    """Ends a request's connections when its time is over, whatever the request is waiting for then.

    The client calls `trace`, the request's extension of that name, with each connection that it makes. A connection
    of an earlier request would stay unknown, so a request needs one of its own.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self.extend(seconds)

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def extend(self, seconds: float) -> None:
        """Move the end to `seconds` from now."""
        self._end = time.monotonic() + seconds

    def end(self) -> None:
        """End the request's connections now."""
        with self._lock:
            self.expired = True
            self._end_connections()

    def trace(self, event: str, details: dict[str, Any]) -> None:
        """Take note of a connection that the client made."""
        if event.endswith(".connect_tcp.complete"):
            # A duplicate stays valid when TLS takes the socket over, and ends the connection below TLS.
            own = details["return_value"].get_extra_info("socket").dup()
            with self._lock:
                self._sockets.append(own)
                self._end_connections()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._end - time.monotonic())):
            if time.monotonic() >= self._end:
                self.end()
                return

    def _end_connections(self) -> None:
        for own in self._sockets if self.expired else ():
            with suppress(OSError):
                own.shutdown(socket.SHUT_RDWR)
