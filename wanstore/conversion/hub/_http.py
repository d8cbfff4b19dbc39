"""Requests to the Hub through its client's session, with ends to their waits, retries, and errors in plain words."""

from __future__ import annotations

import importlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs

from wanstore.errors import AccessError, NotFoundError, SourceError, UnreachableError, WanstoreError
from wanstore.interfaces import Progress

T = TypeVar("T")

_LONGEST_WAIT_SECONDS = 300.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_AGAIN = "Run the same command again: it resumes from what has arrived"


@attrs.frozen
class Limits:
    """How long to wait and how often to try again.

    `attempts` in a row may fail before we give up; 4 MiB of a file begin a new count. `backoff_seconds` is the
    first pause between them, doubled each time. `stall_seconds` is the longest silence, and
    `least_bytes_per_second` the slowest pace of one connection, averaged over `pace_seconds`. `api_seconds` is
    the time for one API answer as a whole. A file comes in pieces of `piece_bytes` over `connections` at once:
    one HTTP stream alone is far slower than most networks.
    """

    attempts: int = 6
    backoff_seconds: float = 0.5
    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    least_bytes_per_second: int = 16 << 10
    pace_seconds: float = 30.0
    api_seconds: float = 60.0
    connections: int = 4
    piece_bytes: int = 64 << 20


class PassingError(Exception):
    """A failure that may pass; the Hub may have said after how many seconds."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class NoRangesError(Exception):
    """The server sent a whole file where a part was asked for."""


class Http:
    """Requests through the client's session, with ends to their waits and errors in wanstore's own words."""

    def __init__(self, repo: str, revision: str | None, endpoint: str, limits: Limits, progress: Progress) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        self._repo, self._revision, self._endpoint, self._limits = repo, revision, endpoint, limits
        self._progress = progress
        # The client speaks through httpx up to 1.x and httpx2 from 2.x: its own error's base says which.
        names = [base.__module__.partition(".")[0] for base in HfHubHTTPError.__mro__]
        transport = importlib.import_module(next(name for name in names if name in ("httpx", "httpx2")))
        self._transport_error: type[Exception] = transport.HTTPError

    def retrying(self, task: str, progress: Progress, call: Callable[[], T], ended: threading.Event | None = None) -> T:
        """What `call` returns; a failure that may pass is tried again, unless `ended` is set meanwhile.

        Raises `UnreachableError` in the end.
        """
        ended = ended or threading.Event()
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return call()
            except PassingError as failure:
                doubled = self._limits.backoff_seconds * 2 ** (attempt - 1)
                # Jitter, so that many clients that failed together do not come back together.
                pause = failure.wait_seconds or min(doubled, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311
                if attempt == self._limits.attempts or pause > _LONGEST_WAIT_SECONDS:
                    raise UnreachableError(
                        f"{task} could not be fetched from {self._endpoint}: {failure} (attempt {attempt})", _AGAIN
                    ) from None
                progress.message(f"{task}: {failure}; trying again in {pause:.1f} s")
            if ended.wait(pause):
                raise stopped_error(task)
        raise AssertionError("attempts must be at least 1")

    def json(self, url: str) -> tuple[Any, str | None]:
        """An API answer, and the address of its next page."""
        return self.retrying(self._repo, self._progress, lambda: self._json_once(url))

    def _json_once(self, url: str) -> tuple[Any, str | None]:
        end = time.monotonic() + self._limits.api_seconds
        body = bytearray()
        with self.open(url, {}, min(self._limits.stall_seconds, self._limits.api_seconds)) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > end:
                    raise PassingError(f"no complete answer within {self._limits.api_seconds:g} s")
            try:
                return json.loads(body), self._on_endpoint(response.links.get("next", {}).get("url"))
            except ValueError:
                raise PassingError("an answer that is not JSON") from None

    def _on_endpoint(self, url: str | None) -> str | None:
        """A link from the Hub, held to the Hub's own host: our token goes with it."""
        own = urlsplit(self._endpoint)
        return urlsplit(url)._replace(scheme=own.scheme, netloc=own.netloc).geturl() if url else None

    def range(self, url: str, start: int, stop: int, size: int) -> bytes:
        """The bytes from `start` up to `stop` of a file of `size` bytes, in memory."""
        body = bytearray()
        for chunk in self.stream(url, start, stop, size) if stop > start else ():
            body += chunk
        return bytes(body)

    def stream(self, url: str, start: int, stop: int, size: int, *, ranges: bool = True) -> Iterator[bytes]:
        """The same bytes as they come. With `ranges` false a server that sends the whole file is put up with.

        Raises `NoRangesError`, and `PassingError` unless exactly these bytes came.
        """
        pace = _Pace(self._limits)
        with self.open(url, {"Range": f"bytes={start}-{stop - 1}"}, self._limits.stall_seconds) as response:
            skip = 0
            if response.status_code != 206:
                if start and ranges:
                    raise NoRangesError
                skip = start
            elif response.headers.get("Content-Range") != f"bytes {start}-{stop - 1}/{size}":
                raise PassingError("the server sent another range than the one requested")
            left = stop - start
            for chunk in response.iter_bytes():
                pace.heard(len(chunk))
                wanted = chunk[skip : skip + left]
                skip = max(0, skip - len(chunk))
                left -= len(wanted)
                yield wanted
                if not left:
                    return
            raise PassingError(f"the answer ended {left} bytes early")

    @contextmanager
    def open(self, url: str, headers: dict[str, str], read_seconds: float) -> Iterator[Any]:
        """A response with a good status, its body unread."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = {**build_hf_headers(library_name="wanstore"), "Accept-Encoding": "identity", **headers}
        timeout = (self._limits.connect_seconds, read_seconds, read_seconds, read_seconds)
        # No error here keeps its cause: a transport's text may quote headers, and so the token.
        try:
            with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
                _raise_if_passing(response)
                hf_raise_for_status(response)
                yield response
        except OfflineModeIsEnabled:
            raise UnreachableError(
                f"{self._repo} cannot be reached: HF_HUB_OFFLINE is set", "Unset it, or use a folder as the source"
            ) from None
        except HfHubHTTPError as error:
            raise self._refusal(error) from None
        except UnicodeEncodeError:
            raise AccessError("The Hub token contains invalid characters", "Set HF_TOKEN again") from None
        except self._transport_error as error:
            raise PassingError(_described(error)) from None

    def _refusal(self, error: Any) -> WanstoreError:
        from huggingface_hub import errors

        repo, status = self._repo, error.response.status_code
        page = f"{self._endpoint}/{repo}"
        if isinstance(error, errors.GatedRepoError):
            return AccessError(f"{repo} is gated", f"Accept the terms at {page}, then log in with hf auth login")
        if isinstance(error, errors.RevisionNotFoundError):
            return NotFoundError(f"{repo} has no revision {self._revision}", f"See its branches at {page}/tree/main")
        if isinstance(error, errors.RepositoryNotFoundError):
            return NotFoundError(
                f"There is no repo {repo}, or you have no access to it",
                "Check the name; a private one needs hf auth login",
            )
        if isinstance(error, errors.EntryNotFoundError):
            return SourceError(f"{repo} lacks a file that it lists", "Try again, or name another revision")
        if status == 401:
            return AccessError("The Hub refused the token", "Log in again with hf auth login, or unset HF_TOKEN")
        if status == 403:
            return AccessError(f"The token may not read {repo}", f"Give it read access, or ask for access at {page}")
        return UnreachableError(f"The Hub answered {status} for {repo}", "Try again later, and check HF_ENDPOINT")


def _raise_if_passing(response: Any) -> None:
    status = response.status_code
    if status in _PASSING:
        wait = response.headers.get("Retry-After", "")
        raise PassingError(f"the Hub answered {status}", float(wait) if wait.isdigit() else None)
    # A storage address is signed for a while only; asking the Hub again gives a new one.
    if response.history and status >= 400 and "X-Error-Code" not in response.headers:
        raise PassingError(f"the storage behind the Hub answered {status}")


def _described(error: Exception) -> str:
    """A transport's error in words that cannot hold a header."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return words if "Protocol" in type(error).__name__ or not str(error) else f"{words} ({error})"


def stopped_error(task: str) -> UnreachableError:
    """What a stopped fetch raises. What it has downloaded is kept, so it can be resumed."""
    return UnreachableError(f"Fetching {task} was stopped", _AGAIN)


class _Pace:
    """Ends an answer that trickles: the client's own timeout notices only silence."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._since = time.monotonic()
        self._heard_bytes = 0

    def heard(self, size: int) -> None:
        self._heard_bytes += size
        seconds = time.monotonic() - self._since
        if seconds >= self._limits.pace_seconds:
            if self._heard_bytes < self._limits.least_bytes_per_second * seconds:
                raise PassingError(f"only {self._heard_bytes} bytes in {seconds:.1f} s")
            self._since, self._heard_bytes = time.monotonic(), 0
