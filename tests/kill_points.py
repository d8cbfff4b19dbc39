"""Program for test_flows: kills a setup at its n-th touch of the store, for many n, and checks what is left.

    python tests/kill_points.py SOURCE STORE POINTS

Imports once and forks a child for each run, so that a point costs a fraction of a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import wanstore.building._skeleton  # noqa: F401  the heavy imports, once
from wanstore.api import setup
from wanstore.stores.local import LocalStore

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def kill_at(point: int, root: str) -> None:
    """SIGKILL this process just before its `point`-th touch of anything below `root`."""
    left = point

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and arguments and str(arguments[0]).startswith(root):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def main(source: str, root: Path, points: int) -> None:
    torch.set_num_threads(1)
    store = LocalStore(root)
    killed = resumed = 0
    for number in range(points):
        point = number * number // 2  # dense at the start, where stages are made, and far enough to reach the end

        def doomed(at: int = point) -> None:
            kill_at(at, str(root))
            setup(source, store, name="w", replace=True)

        status = in_child(doomed)
        assert all(store.verify(manifest.name).ok for manifest in store.list().pipelines), point
        if os.WIFSIGNALED(status):
            killed += 1
            journal = root / ".wanstore/stages/w/scratch/journal.jsonl"
            resumed += journal.exists() and journal.read_text().count("\n") > 1
        assert in_child(lambda: setup(source, store, name="w")) == 0, point
        assert store.verify("w").ok, point
        assert not list((root / ".wanstore/stages").glob("*")), point
        if not os.WIFSIGNALED(status):
            break
        store.delete("w")
    sys.stdout.write(f"{killed} {resumed}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
