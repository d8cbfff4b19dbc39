"""The calls that change a disk, counted, and one of them broken: killed before it, or refused by the system."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wanstore.stores import local

_AUDITED = {"os.rename": 0, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "os.truncate": None, "os.symlink": None}
"""Python's own audit events, and which argument is the folder that a relative path begins at."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def break_at(number: int, root: Path, how: Callable[[], None]) -> None:  # noqa: C901
    """Call `how` just before this process's call `number`, from 0, that changes something below `root`.

    For the rest of the process's life: meant for a child that was forked for it.
    """
    left = number

    def touch(path: Any) -> None:
        nonlocal left
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if str(path).startswith(str(root)):
            left -= 1
            if left == -1:
                how()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and arguments[2] & _WRITING:
            touch(arguments[0])
        elif event in _AUDITED:
            path, place = os.fspath(arguments[0]), _AUDITED[event]
            if place and not Path(path).is_absolute() and arguments[place] >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[place]}"), path)  # noqa: PTH115, PTH118
            touch(path)

    sys.addaudithook(hook)

    def counted(call: Callable[..., Any], path_of: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            touch(path_of(*arguments))
            return call(*arguments)

        return counting

    def path_of_file(descriptor: int, *_: Any) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115

    # What Python does not report.
    for name in ("fsync", "pwrite", "write"):
        setattr(os, name, counted(getattr(os, name), path_of_file))
    local.swap = counted(local.swap, lambda one, other: one)  # type: ignore[attr-defined]


def kill() -> None:
    """SIGKILL: no clean-up, no farewell."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(code: int) -> Callable[[], None]:
    """The system's refusal, as the call itself would raise it."""

    def raise_it() -> None:
        raise OSError(code, os.strerror(code))

    return raise_it
