"""The calls that change a disk, counted, and some of them broken: killed, torn, or refused by the system."""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]
import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from wanstore.stores import _atomic_swap, local

_AUDITED = {
    # Python's own audit events: the positions of their paths, each with that of the folder where a relative one begins.
    "os.rename": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
}
_UNREPORTED = ("write", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range", "ftruncate", "posix_fallocate",
               "fsync", "fdatasync")  # fmt: skip
"""What Python does not report: functions of `os`. All but the last five take data that a crash can tear."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_TAKES_SPACE = {"open", "os.mkdir", "os.link", "os.symlink", "ftruncate", "posix_fallocate"} | {*_UNREPORTED[:6]}


@attrs.frozen
class Touch:
    """A call about to change something; `half` does half of it, where it has halves."""

    call: str
    half: Callable[[], object] | None = None


How = Callable[[Touch], None]


def break_from(number: int, root: Path, how: How) -> None:
    """Call `how` just before this process's call `number`, from 0, that changes something below `root`, and all later.

    For the rest of the process's life: meant for a child that was forked for it.
    """
    left = number

    def touch(path: str, touched: Touch) -> None:
        nonlocal left
        if path == str(root) or path.startswith(f"{root}/"):
            left -= 1
            if left < 0:
                how(touched)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and arguments[2] & _WRITING:
            touch(os.fsdecode(arguments[0]), Touch("open"))
        elif event in _AUDITED:
            paths = [_absolute(arguments[path], arguments, place) for path, place in _AUDITED[event]]
            touch(next((path for path in paths if path.startswith(str(root))), ""), Touch(event))

    sys.addaudithook(hook)

    def counted(name: str) -> None:
        call = getattr(os, name)

        def counting(*arguments: Any) -> Any:
            # copy_file_range alone names the source first.
            target = arguments[1] if name == "copy_file_range" else arguments[0]
            touch(_path_of(target), Touch(name, _half_of(name, call, arguments)))
            return call(*arguments)

        setattr(os, name, counting)

    for name in _UNREPORTED:
        counted(name)
    _write_by_os()
    exchange = _atomic_swap.swap

    def swap(one: Path, other: Path) -> None:
        touch(str(one), Touch("renameat2"))
        exchange(one, other)

    _atomic_swap.swap = local.swap = swap  # type: ignore[attr-defined]  # it is called by both names


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115


def _absolute(path: Any, arguments: tuple[Any, ...], place: int | None) -> str:
    if isinstance(path, int):
        return _path_of(path)
    folder = -1 if place is None else arguments[place]
    text = os.fsdecode(path)
    return text if folder < 0 else os.path.join(_path_of(folder), text)  # noqa: PTH118


def _half_of(name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], object] | None:
    """What does half of a write; None when it has no halves."""
    if name in ("write", "pwrite") and len(arguments[1]) > 1:
        # Copied only when it is wanted: a view that is kept would keep the buffer's owner from resizing it.
        return lambda: call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
    if name == "sendfile":
        size = os.fstat(arguments[1]).st_size
        return (lambda: call(*arguments[:3], size // 2)) if size > 1 else None
    return None


def _write_by_os() -> None:
    """Let files that are opened for writing be written by `os.write`, which is counted: C's own is not seen."""
    plain = builtins.open

    def opened(file: Any, mode: str = "r", *more: Any, **settings: Any) -> Any:
        return (_pyio.open if set(mode) & set("wax+") else plain)(file, mode, *more, **settings)

    builtins.open = io.open = opened


def kill(touched: Touch) -> None:
    """SIGKILL before the call: no clean-up, no farewell."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear(touched: Touch) -> None:
    """SIGKILL in the middle of a write. A call that has no middle ends the process with status 0."""
    if touched.half is None:
        os._exit(0)
    touched.half()
    kill(touched)


def refuse(code: int, *, stays: bool = False) -> How:
    """The system's refusal, as the call itself would raise it: once, or of this call and all later ones.

    A disk that stays full refuses what takes space, and still removes and renames.
    """
    refused = False

    def raise_it(touched: Touch) -> None:
        nonlocal refused
        if refused and (not stays or (code == errno.ENOSPC and touched.call not in _TAKES_SPACE)):
            return
        refused = True
        raise OSError(code, os.strerror(code))

    return raise_it
