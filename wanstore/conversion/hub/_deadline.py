"""An end to an HTTP exchange, whatever it is waiting for."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

_AGAIN_SECONDS = 0.2
"""A connection that is made after the deadline is met at the next look."""


class Deadline:
    """Shuts the exchange's sockets after `seconds`, unless it is cancelled; `passed` then says so.

    The client's own timeouts notice silence alone: headers, redirects or a body that trickle are never silent. Given as
    `trace` to a request that opens a connection of its own.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._watch, args=(seconds,), name="wanstore-deadline", daemon=True).start()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """The client's report of what it does: with each connection comes its socket."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._sockets.append(info["return_value"].get_extra_info("socket"))

    def cancel(self) -> None:
        """The exchange, or the part of it that has an end, is over."""
        self._over.set()

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            self.passed = True
            with self._lock:
                for one in self._sockets:
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(one, socket.SHUT_RDWR)  # close() would not wake who waits on it
            seconds = _AGAIN_SECONDS
