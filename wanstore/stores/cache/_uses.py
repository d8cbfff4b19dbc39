"""The cache of remote stores: where it is, and which processes use what is in it.

    CACHE/lock                                  held while somebody looks who uses what
    CACHE/KIND/WHERE/pipelines/DIGEST/NAME/     a pipeline that came down
    CACHE/KIND/WHERE/pipelines/DIGEST.json      what it is. Its time is that of the last use; users share its lock
    CACHE/KIND/WHERE/pipelines/trash-ID/        one that is being deleted
    CACHE/KIND/WHERE/staging/                   staging areas, before they go up

Whoever begins to use a pipeline, or takes one out, holds `CACHE/lock` for that moment: so nobody begins to use what
somebody else has just found unused. The system lets go of a dead process's locks. Caches of older versions lack
the notes: what a version without locks uses looks unused, unless it is being downloaded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from wanstore._files import read_small_file, remove_tree
from wanstore.errors import InvalidSettingError

CACHE_VARIABLE = "WANSTORE_CACHE"
"""The folder for downloads and stages, instead of the platform's cache folder."""
LIMIT_VARIABLE = "WANSTORE_CACHE_GIB"
"""How much of it downloads may take; no limit if it is not set, or empty."""
_NOTE_MAX_BYTES = 4096

_held: dict[Path, tuple[int, int]] = {}
"""By folder, the descriptor with this process's shared lock, and how many uses it stands for."""
_held_lock = threading.Lock()


def cache_folder() -> Path:
    """Where downloads and staging areas of remote stores are. All of it may be deleted while nothing runs."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    home = Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home).absolute() / "wanstore"


def limit_bytes() -> int | None:
    """What downloads may take of the cache; None without a limit. Raises `InvalidSettingError`."""
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return None
    with suppress(ValueError, OverflowError):
        if (limit := int(float(text) * (1 << 30))) > 0:
            return limit
    raise InvalidSettingError(f"{LIMIT_VARIABLE} is {text!r}, which is no size", "Set it to GiB, such as 50")


@attrs.frozen
class Note:
    """What is known about a pipeline in the cache, or on its way there."""

    store: str | None = None
    name: str | None = None
    size_bytes: int = 0


@contextmanager
def cache_locked(root: Path) -> Iterator[None]:
    """Be alone with who uses what in the cache `root`, which is made if it is missing.

    A cache that this user may only read is left as it is: there is nothing to be alone with.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if not _may_only_be_read(error):
            raise
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def use(folder: Path, note: Note | None = None) -> None:
    """Use the `pipelines/DIGEST` folder of a locked cache until `release`, or the end of the process.

    It is made if it is missing, so that a download counts from its beginning.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(_note_of(folder), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if not _may_only_be_read(error):
            raise
        return
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if note and read_note(folder) != note:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(attrs.asdict(note)).encode(), 0)
    os.utime(descriptor)
    with _held_lock:
        before, count = _held.pop(folder, (None, 0))
        if before is not None:  # the new one, in case that somebody has deleted the cache meanwhile
            os.close(before)
        _held[folder] = descriptor, count + 1


def hold(path: Path) -> None:
    """Use once more what `local_path` has given; nothing to do where that is not in the cache."""
    folder, root = path.parent, cache_folder()
    if root in folder.parents:
        with cache_locked(root):
            if folder.is_dir():
                use(folder)


def release(*paths: Path) -> None:
    """End one use of each path that `local_path` has given; nothing to do where that is not in the cache."""
    with _held_lock:
        for path in paths:
            if path.parent in _held:
                descriptor, count = _held.pop(path.parent)
                if count > 1:
                    _held[path.parent] = descriptor, count - 1
                else:
                    os.close(descriptor)  # no unlocking: a forked process may share the lock


@contextmanager
def released(*paths: Path) -> Iterator[None]:
    """End one use of each path after the block; see `release`."""
    try:
        yield
    finally:
        release(*paths)


def is_used(folder: Path) -> bool:
    """Whether a process uses, or writes, the `pipelines/DIGEST` folder of a locked cache."""
    locks = folder / ".wanstore/locks"  # of a version that downloads without a note
    return any(map(is_locked, (_note_of(folder), *(locks.iterdir() if locks.is_dir() else ()))))


def is_locked(file: Path) -> bool:
    """Whether a process holds a lock of the file, shared or not."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's: it is not for us to remove
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_note(folder: Path) -> Note:
    """What is known about the `pipelines/DIGEST` folder: nothing where the note is missing or damaged."""
    try:
        found: Any = json.loads(read_small_file(_note_of(folder), _NOTE_MAX_BYTES))
        note = Note(found["store"], found["name"], found["size_bytes"])
    except (OSError, ValueError, TypeError, KeyError):
        return Note()
    right = isinstance(note.store, str) and isinstance(note.name, str) and isinstance(note.size_bytes, int)
    return note if right else Note()


def last_use(folder: Path) -> float:
    """When the `pipelines/DIGEST` folder was last used, or came."""
    with suppress(FileNotFoundError):
        return _note_of(folder).stat().st_mtime
    return folder.stat().st_mtime


def take_out(folder: Path) -> None:
    """Take an unused `pipelines/DIGEST` folder out of a locked cache; `empty_trash` deletes it."""
    folder.rename(folder.parent / f"trash-{uuid.uuid4().hex}")
    _note_of(folder).unlink(missing_ok=True)


def empty_trash(root: Path) -> None:
    """Delete what was taken out, also by processes that died over it. It is out of use: no lock is needed."""
    for grave in root.glob("*/*/pipelines/trash-*"):
        remove_tree(grave)


def _note_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.json"


def _may_only_be_read(error: OSError) -> bool:
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
