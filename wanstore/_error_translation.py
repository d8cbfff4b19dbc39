"""Errors of the operating system, Python and torch, as the errors of wanstore that say what to do next."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wanstore.errors import AccessError, DiskFullError, WanstoreError


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in one line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_one_line(error: BaseException) -> str:
    """All that an error of somebody else's says, in one line; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# What torch raises as a plain RuntimeError: its CPU allocator, the C++ library, and NVIDIA's libraries.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python's or torch's says that memory, the device's or the host's, does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported here
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


_FREE_SPACE = "Free some space and run the same command again"
_MAY_WRITE = "Choose a folder that you can write to"
_NEXT_STEPS = {
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "Check the path: a file is in the place of a folder",
    errno.EISDIR: "Name a file, not a folder",
    errno.EEXIST: "Choose another path, or move away what is there",
    errno.ENOTEMPTY: "Choose another path, or move away what is there",
    errno.ELOOP: "Check the path: links in it lead back to themselves",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.EACCES: "Get permission to read and write it, or choose another path",
    errno.EPERM: "Get permission to read and write it, or choose another path",
    errno.EROFS: _MAY_WRITE,
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "Raise the file size limit: see ulimit -f",
    errno.EMFILE: "Raise the limit of open files: see ulimit -n",
    errno.ENFILE: "Close programs that hold files open, and run the same command again",
    errno.ENOMEM: "Free some memory and run the same command again",
    errno.EIO: "Check the disk and the kernel's log",
}


def of_system(error: OSError, where: Path | None = None) -> WanstoreError:
    """What the operating system refused, by its path (that of the error, if not `where`), with a next step."""
    reason = os.strerror(error.errno) if error.errno else first_line(error).rstrip(".")
    place = where or error.filename
    next_step = _NEXT_STEPS.get(error.errno or 0, "Fix the cause and run the command again")
    return WanstoreError(f"{place}: {reason}" if place else reason, next_step)


@contextmanager
def plain_os_errors(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below `where` into errors with a next step."""
    try:
        yield
    except OSError as error:  # one of ours has no errno, and passes
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"There is no space left for {where}", "Free some space and run the same command again: it resumes"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessError(
                f"{error.filename or where} cannot be written ({error.strerror})",
                "Choose a folder that you can write to",
            ) from error
        raise


def unreadable(path: Path | str) -> AccessError:
    """The error of a file that is closed to this user, which says nothing of what is in it."""
    return AccessError(f"{path} cannot be read (permission denied)", "Get permission to read it")


@contextmanager
def unconfirmed(done: str, next_step: str) -> Iterator[None]:
    """What the block does comes after a change that is made: an error in it must not read as if nothing had changed."""
    try:
        yield
    except OSError as error:
        raise WanstoreError(
            f"{done}, but the disk did not confirm it ({error.strerror}): a loss of power may undo it", next_step
        ) from error


def reason_of(error: Exception) -> str:
    """Why something cannot be read, without the next step."""
    return (error if isinstance(error, WanstoreError) else of_system(error)).what  # type: ignore[arg-type]
