"""Helpers for files: hash them, list them, force them to the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BufferedReader
from pathlib import Path

from wanstore._error_translation import of_system
from wanstore.errors import AlreadyExistsError, WanstoreError

_BLOCK_BYTES = 4 << 20
PAGE_BYTES = 4096
HASHED_AT_ONCE = 8
"""A pipeline has about as many weight files, and hashing lets go of the interpreter's lock. Fewer cores do as well."""


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in blocks; `advance` receives the size of each block."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            if advance:
                advance(count)
    return digest.hexdigest()


def open_direct(path: Path, flags: int) -> int | None:
    """A descriptor that goes past the page cache, in whole pages; None where O_DIRECT is not supported."""
    try:
        return os.open(path, flags | os.O_DIRECT)
    except (AttributeError, OSError):  # not Linux, or a file system without it
        return None


class BlockFile:
    """A file whose blocks are written in their places, by any thread: past the page cache where that can be.

    O_DIRECT saves a copy, pages for it, and the wait for write-back at the end. It wants whole pages, in memory that
    begins with a page; what is not like that goes the ordinary way.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, flags, 0o644)
        self._direct = open_direct(path, os.O_WRONLY | flags & os.O_NOFOLLOW)

    def write(self, view: memoryview, position: int) -> None:
        done = 0
        if self._direct is not None and position % PAGE_BYTES == 0:
            done = self._write_direct(self._direct, view[: len(view) // PAGE_BYTES * PAGE_BYTES], position)
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], position + done)

    def _write_direct(self, direct: int, view: memoryview, position: int) -> int:
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(direct, view[done:], position + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return done

    def close(self) -> None:
        # A thread that is still at it must not go on to write to a file that gets the same number.
        descriptors, self.descriptor, self._direct = (self.descriptor, self._direct), -1, None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it. Raises `ValueError` when it is a link, a pipe or a folder, and `OSError`."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("it is no regular file")
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_blocks(path: Path) -> Iterator[memoryview]:
    """What a regular file holds, in order. Each block is overwritten when the next one is asked for.

    Raises as `open_regular`, when the first one is asked for.
    """
    block = memoryview(bytearray(_BLOCK_BYTES))
    with open_regular(path) as file:
        while count := file.readinto(block):
            yield block[:count]


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """What a regular file holds. Raises `ValueError` when it is a link, a pipe or a folder, or larger than that."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes >> 20} MiB")
    return data


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be renamed over it; it is removed after the block. Makes the folder.

    What the operating system refuses is raised as a `WanstoreError`.
    """
    try:
        target = path.resolve()  # a link is not replaced, but what it leads to
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise AlreadyExistsError(f"{path} is not a regular file", "Choose another path")
        draft = target.with_name(f".wanstore-{uuid.uuid4().hex}{target.suffix}")
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)
    except WanstoreError:
        raise
    except OSError as error:
        raise of_system(error, path) from error


def remove_tree(path: Path, *, ignore_errors: bool = True) -> None:
    """Remove what is at `path`: a folder with all that is in it, a link alone, or any other file.

    With `ignore_errors`, as far as it can be.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with suppress(OSError) if ignore_errors else nullcontext():
        path.unlink()


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it. When this returns, every new entry is on the disk."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(new):
        with suppress(PermissionError):  # one may write into a folder that one may not read
            sync(place.parent)


def identity(folder: Path) -> tuple[int, ...] | None:
    """Equal as long as one and the same folder is there, with nothing added or removed; None when there is none."""
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def files_below(folder: Path) -> dict[str, os.stat_result]:
    """Everything below `folder` that is not a directory, by its relative path. Links are not followed.

    What vanishes meanwhile is left out.
    """
    found = {}
    for directory, names, files in os.walk(folder):
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for name in files + links:
            path = os.path.join(directory, name)
            with suppress(FileNotFoundError):
                found[Path(path).relative_to(folder).as_posix()] = os.lstat(path)
    return found


def bytes_below(*folders: Path) -> int:
    """Bytes of all files below the folders."""
    return sum(status.st_size for folder in folders for status in files_below(folder).values())


def sync_tree(folder: Path) -> None:
    """Force every file and directory below `folder` to the disk, the folder itself last."""
    for directory, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(directory, name))
        sync(Path(directory))


def sync(path: Path) -> None:
    """Force one file's data, or one directory's entries, to the disk.

    Some file systems, as network ones and FUSE, do not know the latter: there entries are as durable as they get.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int | None:
    """Free bytes of the file system; None where it gives a placeholder, as mounts of object stores do."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    if found.f_frsize <= 0 or not 0 < found.f_bavail <= found.f_blocks or found.f_blocks * found.f_frsize > 1 << 60:
        return None
    return found.f_bavail * found.f_frsize
