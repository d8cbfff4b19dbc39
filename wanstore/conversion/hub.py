"""A source on the Hugging Face Hub, at one commit, fetched so that a bad network costs time and nothing else.

The Hub's client checks sizes only, gives up on a reset, forgets everything when its process is killed, and waits
for ever on an API call that stays silent. So its session, addresses, token and errors are used here, and what
it lacks is added: every byte is hashed against the Hub's own record, every wait has an end, every failure that
may pass is retried, and what arrived before a crash is not fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, TypeVar
from urllib.parse import quote, urlsplit

import attrs

from wanstore.conversion.source import Source
from wanstore.errors import (
    AccessError,
    DamagedError,
    DiskFullError,
    InvalidNameError,
    NotFoundError,
    SourceError,
    UnreachableError,
    WanstoreError,
)
from wanstore.files import sync
from wanstore.interfaces import Progress, Quiet
from wanstore.manifest import SourceRecord

T = TypeVar("T")

_SAVE_BYTES = 4 << 20
_HASH_BYTES = 1 << 20
_FETCHES = 3
_LONGEST_WAIT_SECONDS = 300.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_AGAIN = "Run the same command again: it goes on from what has arrived"


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


@attrs.frozen
class _File:
    """A file of the tree. `sha256` is the Hub's for a large file; a small one has git's blob id only."""

    path: str
    size: int
    oid: str
    sha256: str | None

    def hasher(self) -> Any:
        if self.sha256:
            return hashlib.sha256()
        # SHA-1 is what git names its blobs by; here it guards against damage, not against an attacker.
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    def agrees(self, hasher: Any) -> bool:
        return bool(hasher.hexdigest() == (self.sha256 or self.oid))


class _PassingError(Exception):
    """A failure that may pass; the Hub may have said after how many seconds."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _NoRangesError(Exception):
    """The server sent a whole file where a part was asked for."""


class HubSource(Source):
    """A model repo on the Hub, at the commit that `revision` (or `main`) had when this was made.

    The token is the client's own (`HF_TOKEN` or `hf auth login`): never stored, printed or put in an error.
    With `keep`, downloads go to that folder and stay there; otherwise `release` deletes them.
    Raises `NotFoundError`, `AccessError`, `UnreachableError`.
    """

    def __init__(
        self, repo: str, revision: str | None = None, *, keep: Path | None = None, limits: Limits | None = None
    ) -> None:
        from huggingface_hub import constants

        _check_repo(repo)
        self.keep = keep
        self._limits = limits or Limits()
        self._endpoint = constants.ENDPOINT
        self._running: set[_Download] = set()
        self._http = _Http(repo, revision, self._endpoint, self._limits)
        api = f"{self._endpoint}/api/models/{repo}"
        info, _ = self._http.json(f"{api}/revision/{quote(revision, safe='')}" if revision else api)
        self.record = SourceRecord("hub", repo, _commit(info, repo), revision)
        self._tree = {file.path: file for file in self._list(f"{api}/tree/{self.record.commit}?recursive=true")}
        self.files = {path: file.size for path, file in self._tree.items()}

    def head(self, path: str, size: int) -> bytes:
        file = self._file(path)
        stop = min(size, file.size)
        return self._http.retrying(path, Quiet(), lambda: self._http.range(self._url(path), 0, stop, file.size))

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        file, target = self._file(path), (self.keep or into) / path
        with _disk_errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            progress.start(path, file.size)
            download = _Download(file, self._url(path), target, self._http, self._limits, progress)
            self._running.add(download)
            try:
                if not download.already_there():
                    download.run()
            finally:
                self._running.discard(download)
            progress.finish(path)
        return target

    def release(self, path: str, fetched: Path) -> None:
        if self.keep is None:
            fetched.unlink(missing_ok=True)

    def stop(self) -> None:
        for download in tuple(self._running):
            download.stop()

    def _file(self, path: str) -> _File:
        if path not in self._tree:
            raise SourceError(
                f"{self.record.location} has no file {path} at commit {self.record.commit[:12]}",
                "Check that this is a Wan 2.1 repo, or name another revision",
            )
        return self._tree[path]

    def _url(self, path: str) -> str:
        # `hf_hub_url` bakes in the endpoint that was set when the client was imported.
        return f"{self._endpoint}/{self.record.location}/resolve/{self.record.commit}/{quote(path)}"

    def _list(self, url: str) -> Iterator[_File]:
        page: str | None = url
        while page:
            entries, page = self._http.json(page)
            try:
                for entry in entries:
                    if entry["type"] == "file":
                        lfs = entry.get("lfs") or {}
                        yield _File(_inside(entry["path"]), int(entry["size"]), entry["oid"], lfs.get("oid"))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise SourceError(f"The Hub's list of files is malformed ({error!r})", "Check HF_ENDPOINT") from error


def _commit(info: Any, repo: str) -> str:
    """The commit that the Hub resolved a revision to; everything after this asks for it, and not for a branch."""
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
        raise SourceError(f"The Hub names no commit of {repo}", "Check HF_ENDPOINT")
    return commit


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InvalidNameError(f"{repo!r} cannot be a Hub repo", "Name one like Wan-AI/NAME, or a folder") from None


def _inside(path: str) -> str:
    """The path itself, unless it would leave the folder that it is fetched into."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise SourceError(f"The repo names a file {path!r}, which would leave its folder", "Do not use this repo")
    return path


class _Http:
    """Requests through the client's session, with ends to their waits and errors in wanstore's own words."""

    def __init__(self, repo: str, revision: str | None, endpoint: str, limits: Limits) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        self._repo, self._revision, self._endpoint, self._limits = repo, revision, endpoint, limits
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
            except _PassingError as failure:
                doubled = self._limits.backoff_seconds * 2 ** (attempt - 1)
                # Jitter, so that many clients that failed together do not come back together.
                pause = failure.wait_seconds or min(doubled, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311
                if attempt == self._limits.attempts or pause > _LONGEST_WAIT_SECONDS:
                    raise UnreachableError(
                        f"{task} could not be had from {self._endpoint}: {failure} (attempt {attempt})", _AGAIN
                    ) from None
                progress.message(f"{task}: {failure}; trying again in {pause:.1f} s")
            if ended.wait(pause):
                raise _stopped(task)
        raise AssertionError("attempts must be at least 1")

    def json(self, url: str) -> tuple[Any, str | None]:
        """An API answer, and the address of its next page."""
        return self.retrying(self._repo, Quiet(), lambda: self._json_once(url))

    def _json_once(self, url: str) -> tuple[Any, str | None]:
        end = time.monotonic() + self._limits.api_seconds
        body = bytearray()
        with self.open(url, {}, min(self._limits.stall_seconds, self._limits.api_seconds)) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > end:
                    raise _PassingError(f"no whole answer within {self._limits.api_seconds:g} s")
            try:
                return json.loads(body), self._on_endpoint(response.links.get("next", {}).get("url"))
            except ValueError:
                raise _PassingError("an answer that is not JSON") from None

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

        Raises `_NoRangesError`, and `_PassingError` unless exactly these bytes came.
        """
        pace = _Pace(self._limits)
        with self.open(url, {"Range": f"bytes={start}-{stop - 1}"}, self._limits.stall_seconds) as response:
            skip = 0
            if response.status_code != 206:
                if start and ranges:
                    raise _NoRangesError
                skip = start
            elif response.headers.get("Content-Range") != f"bytes {start}-{stop - 1}/{size}":
                raise _PassingError("another range was answered than was asked for")
            left = stop - start
            for chunk in response.iter_bytes():
                pace.heard(len(chunk))
                wanted = chunk[skip : skip + left]
                skip = max(0, skip - len(chunk))
                left -= len(wanted)
                yield wanted
                if not left:
                    return
            raise _PassingError(f"the answer ended {left} bytes early")

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
            raise AccessError("The Hub token has characters that no token has", "Set HF_TOKEN anew") from None
        except self._transport_error as error:
            raise _PassingError(_described(error)) from None

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
                f"There is no repo {repo} that we may see", "Check the name; a private one needs hf auth login"
            )
        if isinstance(error, errors.EntryNotFoundError):
            return SourceError(f"{repo} lacks a file of its own list", "Try again, or name another revision")
        if status == 401:
            return AccessError("The Hub refused the token", "Log in anew with hf auth login, or unset HF_TOKEN")
        if status == 403:
            return AccessError(f"The token may not read {repo}", f"Give it read access, or ask for access at {page}")
        return UnreachableError(f"The Hub answered {status} for {repo}", "Try again later, and check HF_ENDPOINT")


def _raise_if_passing(response: Any) -> None:
    status = response.status_code
    if status in _PASSING:
        wait = response.headers.get("Retry-After", "")
        raise _PassingError(f"the Hub answered {status}", float(wait) if wait.isdigit() else None)
    # A storage address is signed for a while only; asking the Hub again gives a new one.
    if response.history and status >= 400 and "X-Error-Code" not in response.headers:
        raise _PassingError(f"the storage behind the Hub answered {status}")


def _described(error: Exception) -> str:
    """A transport's error in words that cannot hold a header."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return words if "Protocol" in type(error).__name__ or not str(error) else f"{words} ({error})"


def _stopped(task: str) -> UnreachableError:
    return UnreachableError(f"Fetching {task} was stopped", _AGAIN)


class _Pace:
    """Ends an answer that trickles: the client's own timeout hears silence only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._since = time.monotonic()
        self._heard_bytes = 0

    def heard(self, size: int) -> None:
        self._heard_bytes += size
        seconds = time.monotonic() - self._since
        if seconds >= self._limits.pace_seconds:
            if self._heard_bytes < self._limits.least_bytes_per_second * seconds:
                raise _PassingError(f"only {self._heard_bytes} bytes in {seconds:.1f} s")
            self._since, self._heard_bytes = time.monotonic(), 0


@contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"No room is left to fetch {path}", f"Free some. {_AGAIN}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessError(
                f"{error.filename or path} cannot be written", "Check the folder's permissions"
            ) from error
        raise


@attrs.define
class _Piece:
    """Bytes of a file still to come."""

    position: int
    stop: int


_News = queue.SimpleQueue[tuple[int, int] | BaseException]


class _Download:
    """One file on its way: `PATH.part` holds its bytes, `PATH.pieces` says which of them have arrived.

    Pieces come over several connections, each written in its place. One thread, the caller's, hears of what was
    written, notes it down, and hashes the file as far as it has no gap. After a kill, the notes tell the next
    run what to fetch; the hash over all bytes decides whether they are right.
    """

    def __init__(self, file: _File, url: str, target: Path, http: _Http, limits: Limits, progress: Progress) -> None:
        self._file, self._url, self._target = file, url, target
        self._http, self._limits, self._progress = http, limits, progress
        self._part = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.pieces")
        self._ranges = True
        self._stopping = False
        self._ended = threading.Event()

    def stop(self) -> None:
        """Make `run`, in another thread, end soon with an error; what has arrived stays."""
        self._stopping = True
        self._ended.set()

    def already_there(self) -> bool:
        """Whether an earlier run finished the file, judged by its content; a damaged one is thrown away."""
        if not self._target.exists():
            return False
        hasher = self._file.hasher()
        with self._target.open("rb") as file:
            size = _hash(file.fileno(), 0, self._file.size + 1, hasher)
        if size == self._file.size and self._file.agrees(hasher):
            self._progress.advance(self._file.path, size)
            self._notes.unlink(missing_ok=True)
            return True
        self._progress.message(f"{self._file.path}: the copy there is damaged; fetching it anew")
        self._target.unlink()
        return False

    def run(self) -> None:
        """Fetch the file. Raises `DamagedError` when the bytes are wrong each time."""
        for _ in range(_FETCHES):
            if self._fetched_right():
                sync(self._part)
                self._part.rename(self._target)
                sync(self._target.parent)
                self._notes.unlink(missing_ok=True)
                return
            self._notes.unlink(missing_ok=True)
            self._part.unlink()
            self._progress.advance(self._file.path, -self._file.size)
            self._progress.message(f"{self._file.path}: the bytes are not the Hub's; fetching it anew")
        raise DamagedError(
            f"{self._file.path} arrived damaged {_FETCHES} times: its hash is not the Hub's",
            "Try again, or from another network",
        )

    def _fetched_right(self) -> bool:
        if not self._part.exists():
            self._notes.unlink(missing_ok=True)
        part = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            size = os.fstat(part).st_size
            if size > self._file.size:
                os.ftruncate(part, self._file.size)
            have = self._noted(size)
            self._progress.advance(self._file.path, sum(stop - start for start, stop in have))
            if have:
                self._progress.message(f"{self._file.path}: going on from an earlier run")
            hasher = self._file.hasher()
            try:
                return self._fill(part, have, hasher)
            except _NoRangesError:
                self._ranges = False
                self._progress.message(f"{self._file.path}: the server sends whole files only; using one connection")
                return self._fill(part, have, self._file.hasher())
        finally:
            os.close(part)

    def _noted(self, size: int) -> list[tuple[int, int]]:
        """What earlier runs noted as arrived. A note cut short by a kill does not match."""
        text = self._notes.read_text() if self._notes.exists() else ""
        spans = [(int(start), int(stop)) for start, stop in re.findall(r"\[(\d+)-(\d+)\]", text)]
        return _merged((start, stop) for start, stop in spans if start < stop <= min(size, self._file.size))

    def _fill(self, part: int, have: list[tuple[int, int]], hasher: Any) -> bool:
        """Fetch the gaps in `have`, which grows meanwhile; whether the whole then has the right hash."""
        news: _News = queue.SimpleQueue()
        self._ended = threading.Event()
        if self._stopping:
            raise _stopped(self._file.path)
        connections = self._limits.connections if self._ranges else 1
        with ThreadPoolExecutor(connections) as pool, self._notes.open("a") as notes:
            try:
                # Takes the notes' block while there is room, so that a full disk can still be noted.
                notes.write("\n")
                notes.flush()
                for piece in self._missing(have):
                    pool.submit(self._work, part, piece, news)
                hashed = 0
                while True:
                    hashed = _hash(part, hashed, have[0][1] if have and have[0][0] == 0 else 0, hasher)
                    if hashed >= self._file.size:
                        return self._file.agrees(hasher)
                    self._take(news.get(), have, notes)
            finally:
                self._ended.set()
                pool.shutdown(cancel_futures=True)
                while not news.empty():
                    if isinstance(late := news.get(), tuple):
                        self._take(late, have, notes)

    def _take(self, new: tuple[int, int] | BaseException, have: list[tuple[int, int]], notes: TextIO) -> None:
        if isinstance(new, BaseException):
            raise new
        notes.write(f"[{new[0]}-{new[1]}]\n")
        notes.flush()
        have[:] = _merged([*have, new])
        self._progress.advance(self._file.path, new[1] - new[0])

    def _missing(self, have: list[tuple[int, int]]) -> list[_Piece]:
        step = self._limits.piece_bytes if self._ranges else self._file.size
        starts, stops = [0] + [stop for _, stop in have], [start for start, _ in have] + [self._file.size]
        return [
            _Piece(position, min(position + step, stop))
            for start, stop in zip(starts, stops, strict=True)
            for position in range(start, stop, max(1, step))
        ]

    def _work(self, part: int, piece: _Piece, news: _News) -> None:
        path, ended = self._file.path, self._ended
        try:
            while piece.position < piece.stop:
                self._http.retrying(path, self._progress, lambda: self._receive(part, piece, news, ended), ended)
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            news.put(error)

    def _receive(self, part: int, piece: _Piece, news: _News, ended: threading.Event) -> None:
        """Bytes of a piece into their place, until it is whole or the connection fails; `news` hears what came."""
        started = noted = piece.position
        try:
            for chunk in self._http.stream(self._url, started, piece.stop, self._file.size, ranges=self._ranges):
                if ended.is_set():
                    raise _stopped(self._file.path)
                _write(part, chunk, piece.position)
                piece.position += len(chunk)
                if piece.position - noted >= _SAVE_BYTES:
                    news.put((noted, piece.position))
                    noted = piece.position
        except _PassingError:
            # Getting on, however brokenly, is no reason to give up.
            if piece.position - started < _SAVE_BYTES:
                raise
        finally:
            if piece.position > noted:
                news.put((noted, piece.position))


def _merged(spans: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _hash(descriptor: int, start: int, stop: int, hasher: Any) -> int:
    """Hash the bytes from `start` to `stop`, or to the file's end; where it ended."""
    while start < stop and (block := os.pread(descriptor, min(_HASH_BYTES, stop - start), start)):
        hasher.update(block)
        start += len(block)
    return start
