"""Starts a worker, receives its events, and makes sure that it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO

import attrs

from wanstore._formats._json import to_json
from wanstore.benchmarking.run._worker import Job


@attrs.frozen
class End:
    """How a worker ended. `reason` explains a missing result."""

    timed_out: bool
    reason: str


def run_worker(job: Job, on_event: Callable[..., None], timeout_seconds: float | None = None) -> End:
    """Run `job` in a fresh process; `on_event` receives each event, name first.

    After `timeout_seconds`, or when `on_event` or Ctrl-C raises, the worker is killed with everything that it started.
    It has its own session, so that Ctrl-C on a terminal reaches the parent alone.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "wanstore.benchmarking.run._worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
        )  # fmt: skip
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            _kill(process)

        timer = threading.Timer(timeout_seconds or threading.TIMEOUT_MAX, stop)
        timer.daemon = True
        timer.start()
        assert process.stdin
        assert process.stdout
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(to_json(job)) + "\n")
                process.stdin.flush()  # and left open: the worker lives as long as it is
            for line in process.stdout:
                with contextlib.suppress(json.JSONDecodeError):  # killed in the middle of a line
                    event = json.loads(line)
                    on_event(*event)
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if timed_out.is_set():
            return End(True, f"not done after {timeout_seconds:g} s")
        return End(False, _last_words(process.returncode, errors))


def _kill(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:  # not waited for yet, so its number has not been reused
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_words(status: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {lines[-1].strip()[:300]}" if lines else how
