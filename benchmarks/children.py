"""Processes that are measured from outside: their time, their memory, and what they answer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.005
OWN_MEMORY = ("RssAnon", "RssShmem")
"""Memory that is a process's own, with what it pinned itself; mapped files are page cache."""


class Deadline:
    """The end of a program's time, from its beginning."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def within(self, seconds: float) -> float:
        """`seconds`, or what is left if that is less."""
        return min(seconds, self._end - time.monotonic())


class Child:
    """One process."""

    def __init__(self, command: list[str], job: str = "", environment: dict[str, str] | None = None) -> None:
        self._command, self._job = command, job
        self._environment = {**os.environ, **(environment or {})}
        self._samples: list[tuple[float, int, int]] = []
        self.began = 0.0

    def run(self, seconds: float, answer: Callable[[str], dict[str, Any]] = json.loads) -> dict[str, Any]:
        """The answer on the last line of its output that `answer` takes; or why there is none, as `error`."""
        if seconds <= 0:
            return {"error": "no time was left"}
        with tempfile.TemporaryFile("w+") as job, tempfile.TemporaryFile("w+") as output:
            job.write(self._job)
            job.seek(0)
            self.began = time.monotonic()
            process = subprocess.Popen(
                self._command, stdin=job, stdout=output, stderr=subprocess.STDOUT,
                env=self._environment,
            )  # fmt: skip
            in_time = self._watch(process, self.began + seconds)
            output.seek(0)
            lines = output.read().strip().splitlines() or ["it said nothing"]
        if not in_time:
            return {"error": f"not done after {seconds:.0f} s"}
        if process.returncode:
            return {"error": f"{lines[-1][:200]} (exit status {process.returncode})"}
        for line in reversed(lines):  # a library may have said something more while it was unloaded
            with contextlib.suppress(ValueError):
                return answer(line)
        return {"error": f"it answered {lines[-1][:200]}"}

    def memory(self, began: float, ended: float) -> dict[str, int]:
        """Memory taken at most in that time, above what was held before: its own, and by what the machine lacks.

        The machine lacks also what the GPU's driver pins for a process, which no process is charged for.
        """
        before = [sample for sample in self._samples if sample[0] < began]
        during = [sample for sample in self._samples if began <= sample[0] <= ended]
        if not before or not during:
            return {}
        own = max(own for _, own, _ in during) - before[-1][1]
        return {"host_bytes": own, "machine_bytes": before[-1][2] - min(free for *_, free in during)}

    def _watch(self, process: subprocess.Popen[str], until: float) -> bool:
        while process.poll() is None:
            self._samples.append((time.monotonic(), own_memory(process.pid), _available_memory()))
            if time.monotonic() > until:
                process.kill()
                process.wait()
                return False
            time.sleep(SAMPLE_SECONDS)
        return True


def own_memory(pid: int | str) -> int:
    """Bytes of `OWN_MEMORY` that a process holds now; 0 when it is gone."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in OWN_MEMORY:
                total += int(value.split()[0]) * 1024
    return total


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
