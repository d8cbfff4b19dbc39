"""Faults to order, by the name of a call: an RPC's, or PUT and GET for the transfer of blocks."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter


class InjectedError(Exception):
    """The call fails because a test asked for it."""


class Faults:
    """What the next calls meet. Safe to use from the test's thread while the server runs."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.stalled = threading.Event()
        self._failing: Counter[str] = Counter()
        self._stalling: dict[str, int] = {}
        self._losing: Counter[str] = Counter()
        self._expired: set[str] = set()

    def fail(self, call: str, times: int) -> None:
        """The next `times` calls fail: an RPC as UNAVAILABLE, a block transfer with status 500."""
        self._failing[call] = times

    def stall(self, call: str, *, after: int = 0) -> None:
        """After `after` more calls, every further one waits for ever; `stalled` is set by the first."""
        self.stalled.clear()
        self._stalling[call] = self.calls[call] + after

    def lose(self, call: str, times: int) -> None:
        """The next `times` calls are answered as if they were done, and nothing is done; VolumeCommit knows how."""
        self._losing[call] = times

    def loses(self, call: str) -> bool:
        """Whether this call is one of them."""
        self._losing[call] -= 1
        return self._losing[call] >= 0

    def expire(self, call_id: str) -> None:
        """The call's outputs are gone, as Modal's are after seven days. They stay so."""
        self._expired.add(call_id)

    def expires(self, call_id: str) -> bool:
        """Whether they are."""
        return call_id in self._expired

    def clear(self) -> None:
        """Calls that begin from now on meet no fault."""
        self._failing.clear()
        self._stalling.clear()
        self._losing.clear()

    async def meet(self, call: str) -> None:
        """Count a call, and let it meet what was ordered."""
        self.calls[call] += 1
        if self.calls[call] > self._stalling.get(call, self.calls[call]):
            self.stalled.set()
            await asyncio.Event().wait()
        if self._failing[call] > 0:
            self._failing[call] -= 1
            raise InjectedError(call)
