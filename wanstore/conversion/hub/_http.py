"""Requests to the Hub through its client's session: bounded in time and size, retried, with errors in plain words."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs

from wanstore.conversion.hub._client import (
    certificate_error,
    open_session,
    read_endpoint,
    request_headers,
    transport,
)
from wanstore.conversion.hub._deadline import Deadline
from wanstore.errors import AccessError, NotFoundError, SourceError, UnreachableError, WanstoreError
from wanstore.interfaces import Progress

T = TypeVar("T")

_LONGEST_WAIT_SECONDS = 300.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_BLOCK_BYTES = 256 << 10
_BLOCK_SECONDS = 0.5
_MAX_ANSWER_BYTES = 16 << 20
"""Most that an answer of the API may have: a page of 1000 files has about 0.3 MB."""
_MAX_REDIRECTS = 10
_AGAIN = "Run the same command again: it resumes from what has arrived"


@attrs.frozen
class Limits:
    """How long to wait and how often to try again.

    `attempts` in a row may fail before we give up; 4 MiB of a file begin a new count. `backoff_seconds` is the
    first pause between them, doubled each time. `stall_seconds` is the longest silence, and
    `least_bytes_per_second` the slowest pace of one connection, averaged over `pace_seconds`. `api_seconds` is
    the time for one API answer as a whole, and for a file's answer until its body begins. A file comes in
    pieces over `connections` at once: one stream alone is far slower than most networks. A piece over HTTPS has a
    connection of its own, so it is a large one; of Xet's, those under way are lost when the process is killed. Over
    Xet a piece has two attempts, and `pace_seconds` is the time over which a collapse of the rate is seen.
    """

    attempts: int = 6
    backoff_seconds: float = 0.5
    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    least_bytes_per_second: int = 16 << 10
    pace_seconds: float = 30.0
    api_seconds: float = 60.0
    connections: int = 8
    http_piece_bytes: int = 64 << 20
    xet_piece_bytes: int = 8 << 20


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
        self.endpoint, self._login = read_endpoint(endpoint)
        self._repo, self._revision, self._limits, self._progress = repo, revision, limits, progress

    def retrying(
        self,
        task: str,
        progress: Progress,
        call: Callable[[], T],
        ended: threading.Event | None = None,
        attempts: int | None = None,
    ) -> T:
        """What `call` returns; a failure that may pass is tried again, unless `ended` is set meanwhile.

        Raises `UnreachableError` in the end: after `attempts`, or as many as the limits say.
        """
        ended = ended or threading.Event()
        attempts = attempts or self._limits.attempts
        for attempt in range(1, attempts + 1):
            try:
                return call()
            except PassingError as error:
                reason, wait_seconds = str(error), error.wait_seconds
            except WanstoreError as error:
                # The client's errors hold the request, and so the token. `from None` only hides them.
                error.__context__ = None
                raise
            doubled = self._limits.backoff_seconds * 2 ** (attempt - 1)
            # Jitter, so that many clients that failed together do not come back together.
            pause = wait_seconds or min(doubled, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311
            if attempt == attempts or pause > _LONGEST_WAIT_SECONDS:
                raise UnreachableError(
                    f"{task} could not be fetched from {self.endpoint}: {reason} (attempt {attempt})", _AGAIN
                )
            if ended.is_set():
                raise stopped_error(task)
            progress.message(f"{task}: {reason}; trying again in {pause:.1f} s")
            if ended.wait(pause):
                raise stopped_error(task)
        raise AssertionError("attempts must be at least 1")

    def headers(self) -> dict[str, str]:
        """The client's, with its token: for the Hub alone."""
        return request_headers(self._login)

    def json(self, url: str, ended: threading.Event | None = None) -> tuple[Any, str | None]:
        """An API answer, and the address of its next page."""
        return self.retrying(self._repo, self._progress, lambda: self._json_once(url), ended)

    def _json_once(self, url: str) -> tuple[Any, str | None]:
        body = bytearray()
        with self.open(url, {}, min(self._limits.stall_seconds, self._limits.api_seconds)) as (response, deadline):
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise _bad_answer(f"has more than {_MAX_ANSWER_BYTES >> 20} MiB")
            # Where the length of an answer is not known, its early end looks like any other.
            if deadline.expired:
                raise self._too_slow()
            try:
                return json.loads(body), self._on_endpoint(response.links.get("next", {}).get("url"))
            except RecursionError:
                raise _bad_answer("is nested too deeply") from None
            except ValueError:
                raise PassingError("an answer that is not JSON") from None

    def _too_slow(self) -> PassingError:
        return PassingError(f"no complete answer within {self._limits.api_seconds:g} s")

    def _on_endpoint(self, url: str | None) -> str | None:
        """A link from the Hub, held to the Hub's own host: our token goes with it."""
        own = urlsplit(self.endpoint)
        return urlsplit(url)._replace(scheme=own.scheme, netloc=own.netloc).geturl() if url else None

    def range(self, url: str, start: int, stop: int, size: int) -> bytes:
        """The bytes from `start` up to `stop` of a file of `size` bytes, in memory."""
        body = bytearray()
        for chunk in self.stream(url, start, stop, size) if stop > start else ():
            body += chunk
        return bytes(body)

    def stream(
        self,
        url: str,
        start: int,
        stop: int,
        size: int,
        *,
        ranges: bool = True,
        requests: set[Deadline] | None = None,
    ) -> Iterator[memoryview]:
        """The same bytes as they come. With `ranges` false a server that sends the whole file is put up with.

        While it lasts, its deadline is among `requests`, so that another thread can end it.
        Raises `NoRangesError`, and `PassingError` unless all of these bytes came.
        """
        pace = _Pace(self._limits)
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        with self.open(url, headers, self._limits.stall_seconds, requests) as (response, deadline):
            skip = 0
            if response.status_code != 206:
                if start and ranges:
                    raise NoRangesError
                skip = start
            elif response.headers.get("Content-Range") != f"bytes {start}-{stop - 1}/{size}":
                raise PassingError("the server sent another range than the one requested")
            left = stop - start
            # The pace is that of data; this ends what trickles between data.
            deadline.extend(self._limits.pace_seconds + self._limits.stall_seconds)
            for chunk in _body(response):
                deadline.extend(self._limits.pace_seconds + self._limits.stall_seconds)
                pace.heard(len(chunk))
                wanted = memoryview(chunk)[skip : skip + left]
                skip = max(0, skip - len(chunk))
                left -= len(wanted)
                yield wanted
                if not left:
                    return
            raise PassingError(f"the answer ended {left} bytes early")

    @contextmanager
    def open(
        self, url: str, headers: dict[str, str], read_seconds: float, requests: set[Deadline] | None = None
    ) -> Iterator[tuple[Any, Deadline]]:
        """A response with a good status, its body unread, and the time that it has."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        http = transport()
        # A connection of its own, or the deadline would not know it; a compressed answer could grow without end.
        own = {"Accept-Encoding": "identity", "Connection": "close"}
        headers = {**self.headers(), **own, **headers}
        timeout = (self._limits.connect_seconds, read_seconds, read_seconds, read_seconds)
        # No error here keeps its cause: a transport's text may quote headers, and so the token.
        with Deadline(self._limits.api_seconds) as deadline, _among(requests, deadline):
            try:
                with closing(self._answer(url, headers, timeout, deadline)) as response:
                    yield response, deadline
            except OfflineModeIsEnabled:
                raise UnreachableError(
                    f"{self._repo} cannot be reached: HF_HUB_OFFLINE is set", "Unset it, or use a folder as the source"
                ) from None
            except HfHubHTTPError as error:
                raise self._refusal(error) from None
            except (http.InvalidURL, UnicodeError):  # the latter of a host's name
                raise UnreachableError(f"{self.endpoint} gave an address that is none", "Check HF_ENDPOINT") from None
            except http.HTTPError as error:
                if deadline.expired:
                    raise self._too_slow() from None
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise certificate_error(str(error)) from None
                raise PassingError(_described(error)) from None

    def _answer(self, url: str, headers: dict[str, str], timeout: Any, deadline: Deadline) -> Any:
        """The answer at the end of the redirects, whose own bodies are left unread."""
        session = open_session()
        request = session.build_request(
            "GET", url, headers=headers, timeout=timeout, extensions={"trace": deadline.trace}
        )
        for redirects in range(_MAX_REDIRECTS + 1):
            response = session.send(request, stream=True, follow_redirects=False)
            request = response.next_request
            if request is None:
                try:
                    _check(response, redirected=redirects > 0)
                except BaseException:
                    response.close()
                    raise
                return response
            response.close()
        raise UnreachableError(
            f"{self._repo}: more than {_MAX_REDIRECTS} redirects", "Check HF_ENDPOINT and your proxy"
        )

    def _refusal(self, error: Any) -> WanstoreError:
        from huggingface_hub import errors

        repo, status = self._repo, error.response.status_code
        page = f"{self.endpoint}/{repo}"
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


@contextmanager
def _among(requests: set[Deadline] | None, deadline: Deadline) -> Iterator[None]:
    if requests is None:
        yield
        return
    requests.add(deadline)
    try:
        yield
    finally:
        requests.discard(deadline)


def _body(response: Any) -> Iterator[bytes | memoryview]:
    """The body's bytes: as the client gives them, or, where nothing is in between, straight from its connection.

    That is half of the work, and done outside of the interpreter. A block is good until the next one is asked for.
    """
    chunks = response.iter_raw()
    first = next(chunks, b"")
    yield first  # with it the client's own buffer is empty
    stream, headers = response.extensions.get("network_stream"), response.headers
    connection, tls = (stream.get_extra_info(kind) if stream else None for kind in ("socket", "ssl_object"))
    length = headers.get("Content-Length", "") if "Transfer-Encoding" not in headers else ""
    # Around the Hub's TLS there may be a proxy's: then this connection is not the one that has the bytes.
    ours = tls is getattr(connection, "_sslobj", None)
    if connection is None or not (ours and length.isdecimal() and response.http_version == "HTTP/1.1"):
        yield from chunks
        return
    left = int(length) - len(first)
    block = memoryview(bytearray(_BLOCK_BYTES))
    fault = None
    while left > 0 and not fault:
        size, space = 0, block[:left]
        # A slow one is not waited for until the block is full: whoever reads may want to stop.
        until = time.monotonic() + _BLOCK_SECONDS
        try:
            while size < len(space) and time.monotonic() < until and (count := connection.recv_into(space[size:])):
                size += count
        except OSError as error:
            fault = PassingError(_described(error))
        if size:
            yield block[:size]
        elif not fault:
            return
        left -= size
    if fault:
        raise fault


def _check(response: Any, *, redirected: bool) -> None:
    """Raise unless the answer has a good status and no encoding. The body of a refusal is left unread."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    status, headers = response.status_code, response.headers
    if status in _PASSING:
        wait = re.fullmatch("[0-9]+", headers.get("Retry-After", ""))
        raise PassingError(f"the Hub answered {status}", float(wait.group()) if wait else None)
    # A storage address is signed for a while only; asking the Hub again gives a new one.
    if redirected and status >= 400 and "X-Error-Code" not in headers:
        raise PassingError(f"the storage behind the Hub answered {status}")
    if not response.is_success:
        reasons = {name: headers.get(name, "") for name in ("X-Error-Code", "X-Error-Message")}
        reasons = {name: reason for name, reason in reasons.items() if reason and reason.isascii()}
        # The client would read the body of this one to its end.
        hf_raise_for_status(type(response)(status, headers=reasons, request=response.request))
        raise PassingError(f"the Hub answered {status}")  # the client does not mind a redirect to nowhere
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _bad_answer(f"is compressed ({encoding[:20]!r}), which was not asked for")


def _bad_answer(fault: str) -> SourceError:
    return SourceError(f"An answer of the Hub {fault}", "Check HF_ENDPOINT and your proxy")


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
