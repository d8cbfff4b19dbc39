"""What can go wrong, as one base class and a few meanings.

Every error says what happened and, as `next_step`, what to do about it; the command line prints both on
one line and exits with status 1. Errors whose `resumable` is true leave finished work behind: running the
same command again goes on from there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WanstoreError(Exception):
    """Base of every error that wanstore raises on purpose.

    `what` is one sentence on what happened; `next_step` one on what to do about it.
    """

    resumable = False

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(f"{what}. {next_step}." if next_step else f"{what}.")
        self.what = what
        self.next_step = next_step


class NotFoundError(WanstoreError):
    """There is no such pipeline, folder, repo, revision or preset."""


class AlreadyExistsError(WanstoreError):
    """The store already holds a pipeline of that name."""


class BusyError(WanstoreError):
    """Another live run is writing the same pipeline."""


class InvalidNameError(WanstoreError):
    """The name or address cannot be used: it could leave the store, or hide in it."""


class DamagedError(WanstoreError):
    """Stored or fetched bytes are not what the manifest, or the Hub, says they are."""


class SourceError(WanstoreError):
    """The source cannot be converted as it stands: a file is missing, malformed, or of the wrong kind."""


class ConversionRefusedError(SourceError):
    """Values would not survive float16: overflows beyond 65504, NaN or Inf."""


class AccessError(WanstoreError):
    """The other side refused us: gated repo, wrong token, missing permission."""


class UnreachableError(WanstoreError):
    """The other side did not answer, or not in time, after every retry."""

    resumable = True


class DiskFullError(WanstoreError):
    """There is no room to write; nothing half-written was published."""

    resumable = True


class InvalidSettingError(WanstoreError):
    """A file of presets or prices holds a key, type or value that cannot be used; `what` names all three."""


class NotSupportedError(WanstoreError):
    """This build, file system or installation cannot do that: an extra or a newer version may."""


class ChangedError(WanstoreError):
    """The store no longer holds what the pipeline was prepared from, or it was replaced in mid-load."""


class DeviceError(WanstoreError):
    """The device has too little memory, failed, or is gone."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in one line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# What torch raises as a plain RuntimeError: its CPU allocator, the C++ library, and NVIDIA's libraries.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python's or torch's says that memory, the device's or the host's, does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported here
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


_FREE_SPACE = "Free some space and run the same command again"
_MAY_WRITE = "Choose a folder that you may write"
_NEXT_STEPS = {
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "Check the path: what stands for a folder in it is a file",
    errno.EISDIR: "Name a file, not a folder",
    errno.EEXIST: "Choose another path, or move away what is there",
    errno.ENOTEMPTY: "Choose another path, or move away what is there",
    errno.ELOOP: "Check the path: links in it lead back to themselves",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.EACCES: "Get leave to read and write it, or choose another path",
    errno.EPERM: "Get leave to read and write it, or choose another path",
    errno.EROFS: _MAY_WRITE,
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "Raise the limit of a file's size: see ulimit -f",
    errno.EMFILE: "Raise the limit of open files: see ulimit -n",
    errno.ENFILE: "Close what holds files open, and run the same command again",
    errno.ENOMEM: "Free some memory and run the same command again",
    errno.EIO: "Look at the disk and the kernel's log",
}


def of_system(error: OSError, where: Path | None = None) -> WanstoreError:
    """What the operating system refused, by its path (that of the error, if not `where`), with a next step."""
    reason = os.strerror(error.errno) if error.errno else first_line(error).rstrip(".")
    place = where or error.filename
    next_step = _NEXT_STEPS.get(error.errno or 0, "Mend that and run the same command again")
    return WanstoreError(f"{place}: {reason}" if place else reason, next_step)


@contextmanager
def plain_os_errors(where: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below `where` into errors with a next step."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"No room is left for {where}", "Free some space and run the same command again: it goes on"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AccessError(
                f"{error.filename or where} cannot be written ({error.strerror})", "Choose a folder that you may write"
            ) from error
        raise
