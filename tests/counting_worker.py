"""A worker whose jobs show what they find in their process, and that die or hang when they are told to."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from typing import Any

import attrs

from wanstore._workers import Send
from wanstore.errors import WanstoreError

found: list[str] = []


@attrs.frozen
class Job:
    """What to do."""

    what: str


def prepare() -> None:
    found.append("prepared")
    os.write(1, b"not an event either\n")
    if "WITHOUT_FORK" in os.environ:
        server: Any = sys.modules["__main__"]
        server._FORKS = False


def do(job: Job, send: Send) -> None:
    found.append(job.what)
    os.write(1, b"not an event\n")
    send("found", list(found), os.getpid(), os.getppid())
    match job.what:
        case "count what is frozen":
            send("found", [], gc.get_freeze_count(), os.getpid())
        case "die":
            sys.stderr.write("last words\n")
            os.write(4, b'["found", half a')
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            raise RuntimeError("it went wrong")
        case "refuse":
            raise WanstoreError("no such thing", "Try another")
        case "hang":
            time.sleep(600)
        case "leave a reader":
            subprocess.Popen(["cat"])
        case "leave a session":
            left = os.fork()
            if left == 0:
                os.setsid()
                time.sleep(600)
            send("found", [], left, os.getpid())
