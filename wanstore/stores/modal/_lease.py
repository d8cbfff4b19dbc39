"""A lease on a pipeline's name, so that two machines do not write it at once: an entry of a `modal.Dict`.

Its holder changes the entry again and again. Who finds an entry watches it: when it changes, its holder
lives; when it does not for long enough, its holder is dead. No two clocks are compared. Where Modal gives no
Dict the work continues without a lease: each pipeline is still published whole, and the last writer wins.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wanstore.errors import BusyError, WanstoreError
from wanstore.stores.modal._client import import_modal, retrying

if TYPE_CHECKING:
    import modal

DICT_NAME = "wanstore-leases"
RENEW_SECONDS = 15.0
DEAD_SECONDS = 60.0
"""A holder that has not renewed for so long is dead: four renewals in a row do not all get lost."""


def current_holder(root: str) -> str:
    """Who works below `root`: in a Modal container the input that it is at, elsewhere the machine.

    Containers' host names are all alike. An input that is tried again comes after its last attempt has ended,
    so that a retry recognises that attempt's entry as its own and does not wait for it.
    """
    if os.environ.get("MODAL_IS_REMOTE") == "1":
        return import_modal().current_input_id() or os.environ.get("MODAL_TASK_ID", "")
    return f"{platform.node()}:{root}"


class Lease:
    """The right to write `key`. `holder` is whose earlier entry may be taken over at once: see `current_holder`."""

    def __init__(self, key: str, holder: str, client: modal.Client | None = None) -> None:
        self._key = key
        self._holder = holder
        self._client = client
        self._run = uuid.uuid4().hex
        self._beat = 0
        self._stop = threading.Event()

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the lease in the block. Yields a check that raises `BusyError` once another run took it over.

        Raises `BusyError` when another live run holds it; finding that out takes a renewal's time.
        """
        entries = self._take_if_possible()
        if entries is None:
            yield _nothing
            return
        renewer = threading.Thread(target=self._renew, args=(entries,), name="wanstore-lease", daemon=True)
        renewer.start()
        try:
            yield lambda: self._check(entries)
        finally:
            self._stop.set()
            renewer.join()
            self._release(entries)

    def _take_if_possible(self) -> Any:
        try:
            return self._take()
        except BusyError:
            raise
        except (WanstoreError, FileNotFoundError):
            return None

    def _take(self) -> Any:
        entries = retrying(
            lambda: import_modal().Dict.from_name(DICT_NAME, create_if_missing=True, client=self._client).hydrate()
        )
        while not retrying(lambda: entries.put(self._key, self._mine(), skip_if_exists=True)):
            self._outlive(entries)
            retrying(lambda: entries.pop(self._key, None))
        return entries

    def _outlive(self, entries: Any) -> None:
        """Return when the entry's holder is dead; raise `BusyError` when it shows that it lives."""
        first = retrying(lambda: entries.get(self._key))
        deadline = time.monotonic() + DEAD_SECONDS
        while first is not None and first[0] != self._holder and time.monotonic() < deadline:
            time.sleep(RENEW_SECONDS / 4)
            now = retrying(lambda: entries.get(self._key))
            if now is not None and now != first:
                raise self._busy(now)
            first = now

    def _renew(self, entries: Any) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._check(entries)
                self._beat += 1
                retrying(lambda: entries.put(self._key, self._mine()))
            except BusyError:
                return
            except WanstoreError:  # the next round may get through
                continue

    def _check(self, entries: Any) -> None:
        now = retrying(lambda: entries.get(self._key))
        if now is None or now[1] != self._run:
            raise self._busy(now)

    def _release(self, entries: Any) -> None:
        try:
            self._check(entries)
            retrying(lambda: entries.pop(self._key, None))
        except WanstoreError:  # lost, or out of reach: it dies by itself
            return

    def _mine(self) -> tuple[str, str, int]:
        return (self._holder, self._run, self._beat)

    def _busy(self, entry: Any) -> BusyError:
        where = entry[0] if entry else "elsewhere"
        return BusyError(f"Another process is writing {self._key} ({where})", "Wait until it is done, and try again")


def _nothing() -> None:
    """The check of a lease that could not be had."""
