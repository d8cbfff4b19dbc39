"""Moving a pipeline's files between a store and a disk: some at a time, stopped together, tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from wanstore.errors import UnreachableError

T = TypeVar("T")

Advance = Callable[[int], None]
"""Hears how many bytes were moved; negative for those that have to be moved again."""

FILES_AT_ONCE = 4
RETRY_DELAYS_SECONDS = (0.5, 2.0, 8.0)
"""A service's client tries a request again within seconds; these are for outages that last longer."""


def all_at_once(
    work: Callable[[T, Advance], None], items: Iterable[T], advance: Advance, *, at_once: int = FILES_AT_ONCE
) -> None:
    """Do it for some items at a time; `work` says how much it has moved. What it raises first is raised here.

    Then, and on Ctrl-C, no item is begun any more, and the others end when they next say something: a file has
    gigabytes, and nobody waits for it.
    """
    stopped = threading.Event()

    def advance_unless_stopped(amount: int) -> None:
        if stopped.is_set():
            raise InterruptedError("another one failed")
        advance(amount)

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(work, item, advance_unless_stopped) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def retrying(operation: Callable[[], T], plain_errors: Callable[[], AbstractContextManager[None]]) -> T:
    """What `operation` returns, tried again with growing pauses while the service cannot be reached.

    `plain_errors` turns the client's errors into ours.
    """
    for delay in RETRY_DELAYS_SECONDS:
        try:
            with plain_errors():
                return operation()
        except UnreachableError:
            time.sleep(delay)
    with plain_errors():
        return operation()


def taking_back(attempt: Callable[[Advance], T], advance: Advance) -> Callable[[], T]:
    """`attempt` as what can be tried again: each further try takes back what those before it had counted."""
    counted = 0

    def count(amount: int) -> None:
        nonlocal counted
        counted += amount
        advance(amount)

    def attempt_again() -> T:
        if counted:
            count(-counted)
        return attempt(count)

    return attempt_again
