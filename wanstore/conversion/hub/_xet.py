"""Files over Xet, the Hub's content store: `hf_xet` finds and fetches the chunks that a part of a file is made of.

It moves bytes outside of the interpreter, for half of what the Hub's client takes over HTTPS. It does not resume, has
no limit for a body that trickles, and hands on nothing before a run of chunks, of up to 64 MB, is there: so it is asked
for pieces, each by a stream of its own, and watched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from wanstore.conversion.hub._http import Http, Limits, PassingError
from wanstore.errors import WanstoreError
from wanstore.interfaces import Progress

_ATTEMPTS = 2
_SLOW_BYTES_PER_SECOND = 2 << 20
"""The first pieces of all streams have the time that they take at this rate, and `stall_seconds` on top."""


def xet_available() -> bool:
    """Whether the client would use Xet: it is installed, and `HF_HUB_DISABLE_XET` is not set."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None


class Xet:
    """A repo's files in the content store. The client's own token route says where that is, and lets us in."""

    def __init__(self, token_url: str, http: Http, limits: Limits) -> None:
        self._token_url, self._http, self._limits = token_url, http, limits

    def way(self, xet: str, size: int, streams: int, progress: Progress, stopping: threading.Event) -> XetWay | None:
        """The way to the file of that Xet hash; None, and a message, if there is none."""
        limits = self._limits
        config = {
            "client.connect_timeout": timedelta(seconds=limits.connect_seconds),
            "client.read_timeout": timedelta(seconds=limits.stall_seconds),
            # Retries are ours, so that they are told.
            "client.retry_max_attempts": 1,
            "client.retry_base_delay": timedelta(seconds=limits.backoff_seconds),
        }
        try:
            import hf_xet

            access, _ = self._http.json(self._token_url, stopping)
            if urlsplit(access["casUrl"]).scheme not in ("https", urlsplit(self._token_url).scheme):
                raise ValueError("its address is not a safe one")
            session = hf_xet.XetSession(hf_xet.XetConfig().with_config(config))
            group = session.new_download_stream_group(
                endpoint=access["casUrl"],
                token=access["accessToken"],
                token_expiry_unix_secs=access["exp"],
                token_refresh_url=self._token_url,
                token_refresh_headers=self._http.headers(),
            )
            return XetWay(session, group, hf_xet.XetFileInfo(xet, size), streams, limits)
        except WanstoreError as error:
            if stopping.is_set():
                raise
            reason = error.what
        except Exception as error:  # noqa: BLE001 - whatever it is, HTTPS needs none of it
            reason = _described(error)
        progress.message(f"Xet cannot be used: {reason}")
        return None


class XetWay:
    """Pieces of one file over Xet: a stream for each, all of one group."""

    def __init__(self, session: Any, group: Any, info: Any, streams: int, limits: Limits) -> None:
        self._session, self._group, self._info = session, group, info
        self.streams = streams
        self.attempts = _ATTEMPTS
        self.piece_bytes = limits.xet_piece_bytes
        together = streams * self.piece_bytes / _SLOW_BYTES_PER_SECOND
        self.most_silent_seconds: float | None = limits.stall_seconds + together

    def __str__(self) -> str:
        return f"Xet, {self.streams} stream" + "s" * (self.streams > 1)

    def receive(self, start: int, stop: int) -> Iterator[memoryview]:
        left = stop - start
        try:
            for block in self._group.download_stream(self._info, start, stop):
                yield memoryview(block)[:left]
                left -= min(left, len(block))
        except Exception as error:  # noqa: BLE001 - it has no base class of its own
            # Not its cause: its text may hold a signed address.
            raise PassingError(_described(error)) from None
        if left:
            raise PassingError(f"Xet ended {left} bytes early")

    def stop(self) -> None:
        # A stream that waits for bytes hears of nothing less: neither of its own `cancel`, nor of its group's `abort`.
        with suppress(Exception):
            self._session.sigint_abort()


def _described(error: Exception) -> str:
    """An error of `hf_xet` without its addresses, which are signed."""
    words = re.sub(r"\S*://\S+", "an address", str(error).partition("\n")[0])
    return f"{type(error).__name__} ({words[:120]})"
