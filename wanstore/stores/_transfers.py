"""Moving a pipeline's files between stores: some at a time, hashed in passing, stopped together, tried again."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import attrs

from wanstore._error_translation import unreadable
from wanstore._files import hash_file
from wanstore.errors import DamagedError, UnreachableError, WanstoreError
from wanstore.interfaces import FileStage, Stage
from wanstore.manifest import FileEntry, Manifest

T = TypeVar("T")

Advance = Callable[[int], None]
"""Hears how many bytes were moved; negative for those that have to be moved again."""

Blocks = Iterator[bytes | memoryview]
"""A file's bytes, in order. A block may be overwritten when the next one is asked for."""

FILES_AT_ONCE = 4
_LOOK = "Look at it with: wanstore verify"
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


def move_files(read: Callable[[str], Blocks], where: str, manifest: Manifest, stage: Stage, advance: Advance) -> None:
    """Write every file that a stage does not hold yet, from what `read` gives for its path, hashed in passing.

    `where` names the pipeline in errors. Raises `DamagedError` when what comes is not what the manifest says.
    """
    files = stage if isinstance(stage, FileStage) else _Folder(stage)

    def move(entry: FileEntry, advance: Advance) -> None:
        if files.holds(entry):
            advance(entry.size_bytes)
        else:
            files.write(entry, taking_back(lambda count: checked(read, where, entry, count), advance))

    all_at_once(move, manifest.files, advance)


@attrs.frozen
class _Folder:
    """Files of a stage that has a folder alone."""

    stage: Stage

    def holds(self, entry: FileEntry) -> bool:
        path = self.stage.path / entry.path
        return path.is_file() and path.stat().st_size == entry.size_bytes and hash_file(path) == entry.sha256

    def write(self, entry: FileEntry, blocks: Callable[[], Blocks]) -> None:
        target = self.stage.path / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = self.stage.scratch / hashlib.sha256(entry.path.encode()).hexdigest()
        try:
            with draft.open("wb", buffering=0) as file:
                for block in blocks():
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
        except BaseException:  # it would keep a full disk full
            draft.unlink(missing_ok=True)
            raise
        draft.replace(target)


def checked(read: Callable[[str], Blocks], where: str, entry: FileEntry, advance: Advance) -> Blocks:
    """The blocks of a file; an error at the end, or as soon as there are too many, if they are not what they should be.

    More bytes than the file should have could fill a disk.
    """
    found, came = hashlib.sha256(), 0
    for block in _readable(read, where, entry.path):
        came += len(block)
        if came > entry.size_bytes:
            raise DamagedError(f"{entry.path} in {where} is longer than its manifest says", _LOOK)
        found.update(block)
        yield block
        advance(len(block))
    if found.hexdigest() != entry.sha256:
        raise DamagedError(f"{entry.path} in {where} is not what its manifest says: its SHA-256 is another", _LOOK)


def _readable(read: Callable[[str], Blocks], where: str, path: str) -> Blocks:
    """The blocks of a file; what the system says of it as an error of ours."""
    try:
        yield from read(path)
    except WanstoreError:
        raise
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing in {where}", _LOOK) from None
    except PermissionError as error:
        raise unreadable(f"{path} in {where}") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} in {where} cannot be read ({error})", _LOOK) from error


def counted(blocks: Blocks, advance: Advance) -> Blocks:
    """`blocks`, each told when it has been used."""
    for block in blocks:
        yield block
        advance(len(block))


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
