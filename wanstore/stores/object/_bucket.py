"""A place in a bucket through `obstore`: list, read, write, remove, each tried again when it may help."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import attrs

from wanstore._error_translation import first_line
from wanstore.errors import AccessError, BusyError, InvalidNameError, NotFoundError, NotSupportedError, UnreachableError

if TYPE_CHECKING:
    from obstore import UpdateVersion

T = TypeVar("T")
Advance = Callable[[int], None]

PIECE_BYTES = 16 << 20
"""Fetched or sent by one request. Of each file, as many as are under way are in memory."""
_PIECES_AT_ONCE = 8
RETRY_DELAYS_SECONDS = (0.5, 2.0, 8.0)
"""obstore tries a request again for some seconds; these are for outages that last longer."""
_RETRY_SECONDS = datetime.timedelta(seconds=30)
_MESSAGE = 300
_INSTANCE = re.compile(r"/latest/(api|meta-data)|computeMetadata|metadata/identity")
"""Where an instance of a cloud asks for its role: what is asked when the environment has no credentials."""


@attrs.frozen
class Object:
    """An object: its size, when it was written, and the version that a conditional write names."""

    size_bytes: int
    modified: datetime.datetime
    version: UpdateVersion


class Bucket:
    """What is below `url`. Places are relative to it, with slashes; a missing one raises `FileNotFoundError`.

    Raises `NotSupportedError` without obstore, or if the URL has an option that is not known, `NotFoundError` when the
    bucket is missing, `AccessError` when it is closed, and `UnreachableError` when trying again did not help.
    """

    def __init__(self, url: str) -> None:
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
                url, retry_config={"max_retries": 6, "retry_timeout": _RETRY_SECONDS}
            )
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise InvalidNameError(
                f"{url} cannot be opened ({_told(error)})", "Write s3://BUCKET, gs://BUCKET or az://CONTAINER"
            ) from error

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in `folder`, sorted."""
        found = self._retrying(lambda: self._obstore.list_with_delimiter(self._store, folder or None))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def objects(self, folder: str) -> dict[str, Object]:
        """Every object below `folder`, by its path relative to it."""
        batches = self._retrying(lambda: list(self._obstore.list(self._store, folder)))
        start = len(folder) + 1
        return {one["path"][start:]: _object(one) for batch in batches for one in batch}

    def look(self, place: str) -> Object | None:
        """The object at `place`; None if there is none."""
        try:
            return _object(self._retrying(lambda: self._obstore.head(self._store, place)))
        except FileNotFoundError:
            return None

    def read(self, place: str, max_bytes: int) -> bytes:
        """A small object's bytes. Raises `ValueError` when it has more than `max_bytes`."""

        def attempt() -> bytes:
            found = self._obstore.get(self._store, place)
            if found.meta["size"] > max_bytes:
                raise ValueError(f"it is larger than {max_bytes} bytes")
            return bytes(found.bytes())

        return self._retrying(attempt)

    def replace(self, place: str, data: bytes, version: UpdateVersion | None) -> None:
        """Write a small object in the place of that version of it; None where there is none yet.

        Raises `BusyError` if another is there, or none any more. A try that failed may have written it all the same.
        """
        exceptions = self._obstore.exceptions
        try:
            self._retrying(
                lambda: self._obstore.put(self._store, place, data, mode="create" if version is None else version)
            )
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError) as error:
            raise BusyError(
                f"{self.url}/{place} was written by somebody else meanwhile", "Look at it, try again"
            ) from error

    def send(self, file: Path, place: str, advance: Advance) -> None:
        """Write an object from a file. `advance` hears of bytes sent, negative for those to be sent again."""

        def attempt(count: Advance) -> None:
            if file.stat().st_size <= PIECE_BYTES:
                data = file.read_bytes()
                self._obstore.put(self._store, place, data)
                count(len(data))
            else:
                self._obstore.put(
                    self._store, place, _pieces(file, count), chunk_size=PIECE_BYTES, max_concurrency=_PIECES_AT_ONCE
                )

        self._counting(attempt, advance)

    def fetch(self, place: str, file: IO[bytes], advance: Advance) -> None:
        """Write the object at `place` into `file`, pieces at a time; `advance` as in `send`."""
        found = self.look(place)
        if found is None:
            raise FileNotFoundError(place)

        def piece(start: int) -> None:
            length = min(PIECE_BYTES, found.size_bytes - start)

            def attempt() -> Any:
                return self._obstore.get_range(self._store, place, start=start, length=length)

            view, position = memoryview(self._retrying(attempt)), start
            while view:
                done = os.pwrite(file.fileno(), view, position)
                view, position = view[done:], position + done
            advance(length)

        with ThreadPoolExecutor(_PIECES_AT_ONCE) as pool:
            futures = [pool.submit(piece, start) for start in range(0, found.size_bytes, PIECE_BYTES)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def sha256(self, place: str, advance: Advance) -> str | None:
        """SHA-256 of an object, which passes through memory; None when it is missing. `advance` as in `send`."""

        def attempt(count: Advance) -> str:
            digest = hashlib.sha256()
            for block in self._obstore.get(self._store, place).stream(min_chunk_size=PIECE_BYTES):
                digest.update(block)
                count(len(block))
            return digest.hexdigest()

        try:
            return self._counting(attempt, advance)
        except FileNotFoundError:
            return None

    def remove(self, *places: str) -> None:
        """Remove objects, if they are there."""
        for place in places:
            try:
                self._retrying(partial(self._obstore.delete, self._store, place))
            except FileNotFoundError:
                continue

    def _counting(self, attempt: Callable[[Advance], T], advance: Advance) -> T:
        """Retry `attempt`; each retry takes back what the last one had counted."""
        counted = 0

        def count(amount: int) -> None:
            nonlocal counted
            counted += amount
            advance(amount)

        def attempt_again() -> T:
            if counted:
                count(-counted)
            return attempt(count)

        return self._retrying(attempt_again)

    def _retrying(self, operation: Callable[[], T]) -> T:
        """What `operation` returns, tried again with growing pauses while the service cannot be reached."""
        for delay in RETRY_DELAYS_SECONDS:
            try:
                with self._plain_errors():
                    return operation()
            except UnreachableError:
                time.sleep(delay)
        with self._plain_errors():
            return operation()

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
        except exceptions.GenericError as error:
            if _INSTANCE.search(str(error)):
                raise AccessError(
                    f"There are no credentials for {self.url}, and no role of this machine ({_told(error)})",
                    "Set those of the service in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                ) from error
            if "NoSuchBucket" in str(error):
                raise NotFoundError(f"There is no bucket for {self.url}", "Create it, or check the name") from error
            raise UnreachableError(
                f"{self.url} did not respond correctly ({_told(error)})", "Run the same command again: it resumes"
            ) from error


def _pieces(file: Path, count: Advance) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            yield piece
            count(len(piece))


def _object(found: Mapping[str, Any]) -> Object:
    version: Any = {key: found[key] for key in ("e_tag", "version") if found.get(key)}
    return Object(found["size"], found["last_modified"], version)


def _told(error: Exception) -> str:
    """The error in one line, without documents, and without queries, which may hold a signature."""
    return re.sub(r"\?\S*|<.*", "", first_line(error)).strip(" :")[:_MESSAGE]
