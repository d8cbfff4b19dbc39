"""A place in a bucket through `obstore`: list, read, write, remove, each tried again when it may help."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from wanstore._error_translation import first_line
from wanstore.errors import (
    AccessError,
    BusyError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
)
from wanstore.stores._transfers import Advance, Blocks, retrying, taking_back

if TYPE_CHECKING:
    from obstore import UpdateVersion

T = TypeVar("T")

PIECE_BYTES = 8 << 20
"""Fetched or sent by one request. Of each file, as many as are under way are in memory."""
_PIECES_AT_ONCE = 4
_RETRY_TIME = datetime.timedelta(seconds=30)
_SILENCE = datetime.timedelta(seconds=60)
"""Longest without a byte. A piece that is sent has as long for all of it: so on a slow line it must not be large."""
_REQUEST_TIME = datetime.timedelta(minutes=10)
_MESSAGE = 300
_URL = re.compile(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*((/[A-Za-z0-9][A-Za-z0-9._+-]*)*)")
"""A bucket, and folders whose names could be those of pipelines."""
_WRITE = (
    "Write s3://BUCKET, gs://BUCKET or az://CONTAINER, or with /prefix; a service's options go into the environment"
)
_INSTANCE = re.compile(r"/latest/(api|meta-data)|computeMetadata|metadata/identity")
"""Where an instance of a cloud asks for its role: what is asked when the environment has no credentials."""


@attrs.frozen
class Object:
    """An object's size, and when it was written."""

    size_bytes: int
    modified: datetime.datetime


@attrs.frozen
class Note:
    """A small object as it was read: what it holds, and the version that a conditional write names."""

    data: bytes
    version: UpdateVersion


class Bucket:
    """What is below `url`. Places are relative to it, with slashes.

    Raises `InvalidNameError` if the URL names no bucket, and `NotSupportedError` without obstore. Every method raises
    `NotFoundError` when the bucket is missing, `AccessError` when it is closed, `UnreachableError` when trying again
    did not help, and `DamagedError` for an object whose key is no path.
    """

    def __init__(self, url: str) -> None:
        if not _URL.fullmatch(url):
            raise InvalidNameError(f"{url!r} does not name a bucket", _WRITE)
        try:
            import obstore
            import obstore.store
        except ImportError as error:
            raise NotSupportedError(
                f"{url} needs the obstore package, which is not installed", "Install it: pip install 'wanstore[object]'"
            ) from error
        self.url, self._obstore = url, obstore
        try:
            self._store: Any = obstore.store.from_url(
                url,
                client_options={
                    "connect_timeout": "10s",
                    "read_timeout": _SILENCE,
                    "timeout": _REQUEST_TIME,
                    # Options take the place of what the client reads in the environment itself.
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
                },
                retry_config={"max_retries": 6, "retry_timeout": _RETRY_TIME},
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise NotSupportedError(f"{url} cannot be opened ({_told(error)})", _WRITE) from error

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in `folder`, sorted."""
        found = self._retrying(lambda: self._obstore.list_with_delimiter(self._store, folder or None))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def objects(self, folder: str) -> dict[str, Object]:
        """Every object below `folder`, by its path relative to it; but for markers that stand for folders."""
        batches = self._retrying(lambda: list(self._obstore.list(self._store, folder)))
        start = len(folder) + 1
        return {one["path"][start:]: _object(one) for batch in batches for one in batch if one["path"][start:]}

    def read(self, place: str, max_bytes: int) -> Note | None:
        """A small object; None if there is none. One that is larger is not ours, and read as if it were empty."""

        def attempt() -> Note:
            found = self._obstore.get(self._store, place)
            version: Any = {key: found.meta[key] for key in ("e_tag", "version") if found.meta.get(key)}
            return Note(bytes(found.bytes()) if found.meta["size"] <= max_bytes else b"", version)

        try:
            return self._retrying(attempt)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            return None

    def replace(self, place: str, data: bytes, before: Note | None) -> None:
        """Write a small object in the place of what was read there before; None where there was none.

        Raises `BusyError` if another is there, or none any more. A try that failed may have written it all the same.
        """
        exceptions = self._obstore.exceptions

        def attempt() -> None:
            try:
                self._obstore.put(self._store, place, data, mode="create" if before is None else before.version)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError) as error:
                raise BusyError(
                    f"{self.url}/{place} was written by somebody else meanwhile",
                    "See what is there with: wanstore list",
                ) from error

        self._retrying(attempt)

    def write(self, place: str, data: bytes) -> None:
        """Write a small object, whatever is there."""
        self._retrying(lambda: self._obstore.put(self._store, place, data))

    def send(self, blocks: Callable[[], Blocks], place: str) -> None:
        """Write an object from the blocks that `blocks()` gives; again from the first when it is tried again.

        What `blocks` raises is raised here, is no reason to try again, and leaves no object.
        """

        def attempt() -> None:
            rest, first, held = _told_apart(blocks()), [], 0
            for block in rest:
                first.append(bytes(block))
                held += len(block)
                if held > PIECE_BYTES:
                    pieces = itertools.chain(first, map(bytes, rest))
                    self._obstore.put(
                        self._store, place, pieces, chunk_size=PIECE_BYTES, max_concurrency=_PIECES_AT_ONCE
                    )
                    return
            self._obstore.put(self._store, place, b"".join(first))

        try:
            self._retrying(attempt)
        except _ReadingError as error:
            raise error.why from error.why.__cause__

    def blocks(self, place: str) -> Blocks:
        """An object's pieces in order, some of them under way at once. Raises `FileNotFoundError`."""
        size = self._retrying(lambda: self._obstore.head(self._store, place))["size"]

        def piece(start: int) -> memoryview:
            return self.read_range(place, start, min(start + PIECE_BYTES, size))

        starts = iter(range(0, size, PIECE_BYTES))
        with ThreadPoolExecutor(_PIECES_AT_ONCE) as pool:
            under_way = deque(pool.submit(piece, start) for start in itertools.islice(starts, _PIECES_AT_ONCE))
            try:
                while under_way:
                    found = under_way.popleft().result()
                    under_way.extend(pool.submit(piece, start) for start in itertools.islice(starts, 1))
                    yield found
            finally:
                for future in under_way:
                    future.cancel()

    def read_range(self, place: str, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of an object, by one request. Raises `FileNotFoundError`."""
        return memoryview(self._retrying(lambda: self._obstore.get_range(self._store, place, start=start, end=stop)))

    def sha256(self, place: str, advance: Advance) -> str | None:
        """SHA-256 of an object, which passes through memory; None when it is missing. `advance` hears of bytes.

        They are negative when some have to be hashed again.
        """

        def attempt(count: Advance) -> str:
            digest = hashlib.sha256()
            for block in self._obstore.get(self._store, place).stream(min_chunk_size=PIECE_BYTES):
                digest.update(block)
                count(len(block))
            return digest.hexdigest()

        try:
            return self._retrying(taking_back(attempt, advance))
        except FileNotFoundError:
            return None

    def remove(self, *places: str) -> None:
        """Remove objects, if they are there."""
        for place in places:
            try:
                self._retrying(partial(self._obstore.delete, self._store, place))
            except FileNotFoundError:
                continue

    def _retrying(self, operation: Callable[[], T]) -> T:
        return retrying(operation, self._plain_errors)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        exceptions = self._obstore.exceptions
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise AccessError(
                f"{self.url} is closed to these credentials ({_told(error)})",
                "Check those in the environment, such as AWS_ACCESS_KEY_ID",
            ) from error
        except exceptions.InvalidPathError as error:
            raise DamagedError(
                f"{self.url} holds an object that cannot be named ({_told(error)})", "Rename or delete it"
            ) from error
        except exceptions.BaseError as error:
            if _INSTANCE.search(str(error)):
                raise AccessError(
                    f"There are no credentials for {self.url}, and no role of this machine ({_told(error)})",
                    "Set those of the service in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                ) from error
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            if "501 Not Implemented" in str(error):
                raise NotSupportedError(
                    f"{self.url} does not do what a store needs ({_told(error)})",
                    "Use a service with conditional writes: PUT with If-Match and If-None-Match",
                ) from error
            raise UnreachableError(
                f"{self.url} did not respond correctly ({_told(error)})", "Run the same command again: it resumes"
            ) from error

    def _no_bucket(self) -> NotFoundError:
        return NotFoundError(f"There is no bucket for {self.url}", "Create it, or check the name")


class _ReadingError(Exception):
    """What reading raised while it was sent: it says nothing of the service that it is sent to."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


def _told_apart(blocks: Blocks) -> Blocks:
    try:
        yield from blocks
    except Exception as error:
        raise _ReadingError(error) from error


def _object(found: Mapping[str, Any]) -> Object:
    return Object(found["size"], found["last_modified"])


def _told(error: Exception) -> str:
    """The error in one line: no query of an address, which may hold a signature, and of a document only its code."""
    text = re.sub(r"(status code: \d+ [A-Za-z ]*).*", r"\1", re.sub(r"\?\S*", "", first_line(error)))
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return f"{text.strip(' :')[:_MESSAGE]}{f', {code[1]}' if code else ''}"
