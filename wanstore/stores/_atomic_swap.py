"""Swapping two folders in one step, which Python's own `os` does not offer."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from wanstore._files import remove_tree
from wanstore.errors import NotSupportedError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def swap(one: Path, other: Path) -> None:
    """Swap the names `one` and `other` atomically (Linux' renameat2; both must exist, on one file system).

    Raises `NotSupportedError` where the kernel or the file system cannot.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    code = errno.ENOSYS
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise _cannot(other.parent)
    raise OSError(code, os.strerror(code), str(other))


def check_swap(folder: Path) -> None:
    """Raise `NotSupportedError` now, before long work, if `swap` does not work in `folder`."""
    one, other = folder / ".swap-a", folder / ".swap-b"
    for place in (one, other):
        place.mkdir(exist_ok=True)
    try:
        (one / "was-a").touch()
        swap(one, other)
        # A file system that ignores the flag has renamed the one over the other, which was empty.
        if not one.is_dir() or not (other / "was-a").exists():
            raise _cannot(folder)
    finally:
        for place in (one, other):
            remove_tree(place)


def _cannot(folder: Path) -> NotSupportedError:
    return NotSupportedError(
        f"The file system of {folder} cannot swap two folders in one step",
        "Store under another name, or delete the old pipeline first",
    )
