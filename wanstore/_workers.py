"""Work in a process of its own: what dies or hangs there takes nothing with it.

A worker is a module with a `main` that calls `work`. Its job is one line of JSON on stdin, and it ends when stdin is
closed. Each line that it writes to stdout is a JSON list: an event and its arguments.
"""

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
from typing import IO, Any, TypeVar

import attrs

from wanstore._formats._json import from_json, to_json
from wanstore.errors import WanstoreError

T = TypeVar("T")
Send = Callable[..., None]


# --- in the parent


@attrs.frozen
class End:
    """How a worker ended. `reason` explains a missing result."""

    timed_out: bool
    reason: str


def run_worker(module: str, job: Any, on_event: Send, timeout_seconds: float | None = None) -> End:
    """Run `job` by `module` in a fresh process; `on_event` receives each event, name first.

    After `timeout_seconds`, or when `on_event` or Ctrl-C raises, the worker is killed with everything that it started.
    It has its own session, so that Ctrl-C on a terminal reaches the parent alone. A `WanstoreError` of the worker's is
    raised here.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
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
                    event, *args = json.loads(line)
                    if event == "refused":
                        raise WanstoreError(*args)
                    on_event(event, *args)
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


# --- in the worker


def work(kind: type[T], do: Callable[[T, Send], None]) -> None:
    """Do the job on stdin, which is a `kind`; `do` sends events to the parent."""
    job = from_json(json.loads(sys.stdin.readline()), kind)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    send = _channel()
    try:
        do(job, send)
    except WanstoreError as error:
        send("refused", error.what, error.next_step)


class SentProgress:
    """A `Progress` that sends its updates to the parent, as events of the same names."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self._send("start", task, total, unit)

    def advance(self, task: str, amount: int) -> None:
        self._send("advance", task, amount)

    def finish(self, task: str) -> None:
        self._send("finish", task)

    def message(self, text: str) -> None:
        self._send("message", text)


def _channel() -> Send:
    """A function that sends events to the parent, a line each. Anything else that is printed goes to stderr."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(*event: Any) -> None:
        lines.write(json.dumps(event) + "\n")

    return send


def _die_with_parent() -> None:
    """End when stdin does: the parent is gone, and nobody needs the result."""
    while os.read(0, 1):
        pass
    os._exit(1)
