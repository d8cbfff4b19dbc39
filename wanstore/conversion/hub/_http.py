"""Requests to the Hub through its client's session, with ends to their waits, retries, and errors in plain words."""

from __future__ import annotations

import email.utils
import importlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import attrs

from wanstore.conversion.hub._deadline import Deadline
from wanstore.errors import AccessError, NotFoundError, NotSupportedError, SourceError, UnreachableError, WanstoreError
from wanstore.interfaces import Progress

T = TypeVar("T")

_LONGEST_WAIT_SECONDS = 300.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 10
_NETWORK_VARIABLES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}
_MAX_ANSWER_BYTES = 16 << 20
"""The Hub's largest page of a list of files has under 1 MB."""
_AGAIN = "Run the same command again: it resumes from what has arrived"


@attrs.frozen
class Limits:
    """How long to wait and how often to try again.

    `attempts` in a row may fail before we give up; 4 MiB of a file begin a new count. `backoff_seconds` is the
    first pause between them, doubled each time. `stall_seconds` is the longest silence, and
    `least_bytes_per_second` the slowest pace of one connection, averaged over `pace_seconds`. `api_seconds` is
    the time for one API answer as a whole, and for a file's answer up to its first byte. A file comes in pieces of
    `piece_bytes` over `connections` at once: one HTTP stream alone is far slower than most networks.
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
        self._transport_errors: tuple[type[Exception], ...] = (transport.HTTPError, transport.InvalidURL)

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
        body = bytearray()
        with self.open(url, {}, whole=True) as response:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise PassingError(f"an answer of more than {_MAX_ANSWER_BYTES >> 20} MiB")
            following = response.links.get("next", {}).get("url")
        try:
            return json.loads(body), self._on_endpoint(following)
        except (ValueError, RecursionError):
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
        with self.open(url, {"Range": f"bytes={start}-{stop - 1}"}) as response:
            skip = 0
            if response.status_code != 206:
                if start and ranges:
                    raise NoRangesError
                skip = start
            elif response.headers.get("Content-Range") != f"bytes {start}-{stop - 1}/{size}":
                raise PassingError("the server sent another range than the one requested")
            left = stop - start
            for chunk in response.iter_raw():
                pace.heard(len(chunk))
                wanted = chunk[skip : skip + left]
                skip = max(0, skip - len(chunk))
                left -= len(wanted)
                yield wanted
                if not left:
                    return
            raise PassingError(f"the answer ended {left} bytes early")

    @contextmanager
    def open(self, url: str, headers: dict[str, str], *, whole: bool = False) -> Iterator[Any]:
        """A response with a good status, its body unread. Its headers come in time, and with `whole` its body too.

        Raises `PassingError`, and the error that fits a refusal. None has a cause or a context: a transport's text may
        quote headers, and so the token.
        """
        from huggingface_hub.errors import OfflineModeIsEnabled

        failure: Exception
        deadline = Deadline(self._limits.api_seconds)
        try:
            with ExitStack() as stack:
                response = self._answer(url, headers, deadline, stack)
                if not whole:
                    deadline.cancel()
                yield response
            if not deadline.passed:
                return
            failure = self._too_slow()
        except OfflineModeIsEnabled:
            failure = UnreachableError(
                f"{self._repo} cannot be reached: HF_HUB_OFFLINE is set", "Unset it, or use a folder as the source"
            )
        except UnicodeEncodeError:
            failure = AccessError("The Hub token contains invalid characters", "Set HF_TOKEN again")
        except self._transport_errors as error:
            failure = self._too_slow() if deadline.passed else PassingError(_described(error))
        finally:
            deadline.cancel()
        raise failure

    def _too_slow(self) -> PassingError:
        return PassingError(f"no complete answer within {self._limits.api_seconds:g} s")

    def _answer(self, url: str, headers: dict[str, str], deadline: Deadline, stack: ExitStack) -> Any:
        """The response at the end of all redirects. Their bodies, and that of an error, are never read."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        session = _session()
        # A connection of its own: the deadline must know its socket, and nobody else's request may wait on it.
        sent = {**build_hf_headers(library_name="wanstore"), "Accept-Encoding": "identity", "Connection": "close"}
        sent |= headers
        silence = min(self._limits.stall_seconds, self._limits.api_seconds)
        timeout = (self._limits.connect_seconds, silence, silence, silence)
        for redirects in range(_MAX_REDIRECTS + 1):
            response = stack.enter_context(
                session.stream(
                    "GET", url, headers=sent, timeout=timeout, follow_redirects=False,
                    extensions={"trace": deadline.trace},
                )
            )  # fmt: skip
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                self._check(response, redirected=redirects > 0)
                return response
            try:
                target = urljoin(url, response.headers["Location"])
                leaves = _origin(target) != _origin(url)
            except ValueError:
                raise PassingError("a redirect to no address") from None
            if leaves:  # our token is for the Hub's own host
                sent.pop("authorization", None)
            url = target
        raise PassingError(f"more than {_MAX_REDIRECTS} redirects")

    def _check(self, response: Any, *, redirected: bool) -> None:
        """Raise what an answer other than the one asked for means."""
        status, code = response.status_code, response.headers.get("X-Error-Code")
        if status in _PASSING:
            raise PassingError(f"the Hub answered {status}", _seconds(response.headers.get("Retry-After", "")))
        # A storage address is signed for a while only; asking the Hub again gives a new one.
        if redirected and status >= 400 and code is None:
            raise PassingError(f"the storage behind the Hub answered {status}")
        if status not in (200, 206):
            raise self._refusal(status, code, response.headers.get("X-Error-Message", ""))
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PassingError("a compressed answer, which was not asked for")

    def _refusal(self, status: int, code: str | None, message: str) -> WanstoreError:
        repo, page = self._repo, f"{self._endpoint}/{self._repo}"
        if code == "GatedRepo":
            return AccessError(f"{repo} is gated", f"Accept the terms at {page}, then log in with hf auth login")
        if code == "RevisionNotFound":
            return NotFoundError(f"{repo} has no revision {self._revision}", f"See its branches at {page}/tree/main")
        if code == "EntryNotFound":
            return SourceError(f"{repo} lacks a file that it lists", "Try again, or name another revision")
        # The Hub answers 401 for what is private and for what is not there, unless the token itself is wrong.
        if code == "RepoNotFound" or (status == 401 and message != "Invalid credentials in Authorization header"):
            return NotFoundError(
                f"There is no repo {repo}, or you have no access to it",
                "Check the name; a private one needs hf auth login",
            )
        if status == 401:
            return AccessError("The Hub refused the token", "Log in again with hf auth login, or unset HF_TOKEN")
        if status == 403:
            return AccessError(f"The token may not read {repo}", f"Give it read access, or ask for access at {page}")
        return UnreachableError(f"The Hub answered {status} for {repo}", "Try again later, and check HF_ENDPOINT")


def _session() -> Any:
    """The client's session. Raises `NotSupportedError` naming the variable when certificates or proxies are wrong.

    The client's own words may quote a proxy's password, so they are left out.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if (place := os.environ.get(variable)) and not Path(place).exists():
            raise NotSupportedError(f"{variable} names {place}, which is not there", "Correct it, or unset it")
    try:
        return get_session()
    except ImportError:
        reason, next_step = "a SOCKS proxy needs the package socksio", "Install it, or unset the variable"
    except Exception:  # noqa: BLE001  each wrong setting raises an error of its own kind
        reason, next_step = "a proxy or certificate setting cannot be used", "Correct it, or unset it"
    names = [name for name in os.environ if name.upper() in _NETWORK_VARIABLES and os.environ[name]]
    raise NotSupportedError(f"The Hub cannot be asked: {reason} (set are {', '.join(sorted(names))})", next_step)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _seconds(retry_after: str) -> float | None:
    """The pause that a Retry-After asks for, in seconds or until a date; None if it is neither."""
    if re.fullmatch("[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        until = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, until - time.time())


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
