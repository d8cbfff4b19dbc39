"""Checkpoint and restore a program under gVisor, which Modal's memory snapshots are built on.

The program runs over this machine's files, read-only, and speaks in lines of a word and a JSON value:

    with Sandbox([sys.executable, "program.py"]) as sandbox:
        facts = sandbox.hear("READY")
        sandbox.checkpoint(image)
    with Sandbox([sys.executable, "program.py"], image=image) as clone:
        answer = clone.ask("what?")  # a line on the program's stdin; it prints: ANSWER "…"
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

OLDEST = 20240729
"""Of Debian's builds: the one before, of 2022, restores floating point state that gives other results."""


class SandboxError(Exception):
    """A step of the engine failed, or the program ended or stayed silent; holds the tail of the log."""


@cache
def why_not() -> str:
    """Why this machine cannot checkpoint a program; empty where it can."""
    if not shutil.which("runsc"):
        return "gVisor's runsc is not installed (.ci/install-runsc does it on Debian 12)"
    if os.geteuid() != 0:
        return "runsc needs root to checkpoint"
    text = subprocess.run(["runsc", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"\d{8}", text)
    if not version or int(version[0]) < OLDEST:
        return f"{text.partition(chr(10))[0] or 'runsc'} is older than {OLDEST}"
    try:
        with Sandbox(["/bin/echo", "READY", "1"]) as sandbox:
            sandbox.hear("READY", timeout_seconds=20)
    except SandboxError as error:
        return f"runsc runs no container here: {error}"
    return ""


class Sandbox:
    """A program in a sandbox for the length of a `with` block; nothing of it is left afterwards, however it ends.

    Args:
        command: the program and its arguments, by absolute path.
        mounts: folders that the program sees elsewhere, read-only: path inside, which must exist as an empty folder
            outside too, → path outside. A clone may see other folders there than the original did.
        environment: all that the program has of one.
        image: go on from this checkpoint of the same command instead of starting afresh.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        mounts: Mapping[Path, Path] | None = None,
        environment: Mapping[str, str] | None = None,
        image: Path | None = None,
    ) -> None:
        self._spec = _spec(command, mounts or {}, environment or {})
        self._image = image
        self._id = f"wanstore-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        # Not below tmp_path: the engine's sockets lie in here, and their paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="runsc-"))
        (self._folder / "config.json").write_text(json.dumps(self._spec))
        step = ["run"] if self._image is None else ["restore", "-image-path", str(self._image)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._runsc(), *step, "-bundle", str(self._folder), self._id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._process.kill()  # the sandbox, which has it as its parent, dies with it
            self._process.communicate()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def hear(self, word: str, *, timeout_seconds: float = 90) -> Any:
        """The value of the next line that begins with `word`."""
        assert self._process.stdout
        silence = threading.Timer(timeout_seconds, self._process.kill)  # ends the sandbox, and with it the lines
        silence.start()
        try:
            for line in self._process.stdout:
                first, _, value = line.partition(" ")
                if first == word:
                    return json.loads(value)
            how = f"was silent for {timeout_seconds} s" if silence.finished.is_set() else "ended"
        finally:
            silence.cancel()
        raise SandboxError(f"The program {how}, no {word}\n{self._log_tail()}")

    def ask(self, question: str) -> Any:
        """The program's ANSWER to one line."""
        assert self._process.stdin
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SandboxError(f"Nobody is there to be asked\n{self._log_tail()}") from error
        return self.hear("ANSWER")

    def checkpoint(self, image: Path) -> None:
        """Write the program's state into the folder `image`, which is made; the program ends there."""
        image.mkdir(parents=True)
        done = subprocess.run(
            [*self._runsc(), "checkpoint", "-compression", "none", "-image-path", str(image), self._id],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise SandboxError(f"The checkpoint failed: {done.stderr}\n{self._log_tail()}")

    def _runsc(self) -> list[str]:
        flags = ("-platform=systrap", "-network=none", "-overlay2=none", "-ignore-cgroups")
        return ["runsc", f"-root={self._folder / 'root'}", *flags]

    def _log_tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]


def _spec(command: Sequence[str], mounts: Mapping[Path, Path], environment: Mapping[str, str]) -> dict[str, Any]:
    """The container as the OCI runtime specification (1.0) words it."""
    bound = [
        {"destination": str(inside), "type": "bind", "source": str(outside), "options": ["rbind", "ro"]}
        for inside, outside in mounts.items()
    ]
    fresh = [
        {"destination": path, "type": kind, "source": kind}
        for path, kind in (("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/shm", "tmpfs"))
    ]
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "cwd": "/",
            # The only place that can be written to goes with the snapshot.
            "env": [f"{name}={value}" for name, value in {"TMPDIR": "/dev/shm", **environment}.items()],
        },
        "root": {"path": "/", "readonly": True},
        "mounts": [*fresh, *bound],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
