"""Jobs in processes of their own: what dies or hangs there takes nothing with it.

A worker is a module with the class of its jobs, `Job`; `do(job, send)`, which does one and sends events to the parent;
and `prepare()`, which makes the imports that every job needs. `python -m wanstore._workers MODULE` prepares once, then
forks a process for each job, since imports take longer than many a job does. It does nothing else, so that no job's
memory or failure colours another's. Jobs are lines of JSON on stdin, one at a time; it ends when stdin is closed. Each
line on stdout is a JSON list: an event and its arguments.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import IO, Any, Self

import attrs

from wanstore._formats._json import from_json, to_json
from wanstore.errors import WanstoreError

Send = Callable[..., None]
_READY, _ENDED, _REFUSED, _ABSENT = "ready", "ended", "refused", "absent"
_ENDS_WITHIN_SECONDS = 10.0
_FORKS = sys.platform == "linux"
"""Elsewhere system libraries do not bear a fork: there each job has a process from the start, imports included."""


# --- in the parent


@attrs.frozen
class End:
    """How a worker ended. `reason` explains a missing result."""

    timed_out: bool
    reason: str


class Workers:
    """Runs jobs of a worker `module`, each in a fresh process, forked off one that has prepared and waits."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._server: subprocess.Popen[str] | None = None
        self._heard = 0
        """How much of what was printed belongs to earlier jobs."""
        self.prepare_seconds = 0.0
        """What the imports took that the processes begin with, counted from the start of Python."""

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        self._errors.close()

    def prepare(self) -> None:
        """Have a process that has prepared, if there is none.

        Raises `ModuleNotFoundError`, as the imports would here, for a package that is not installed.
        """
        if self._server is None:
            began = time.monotonic()
            # Its own session, so that Ctrl-C on a terminal reaches the parent alone.
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, self._module],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True,
            )  # fmt: skip
            assert self._server.stdout
            answer = self._server.stdout.readline()  # it is ready; or dead, and the job will say so
            if answer.startswith(f'["{_ABSENT}"'):
                self._stop()
                _, text, name = json.loads(answer)
                raise ModuleNotFoundError(text, name=name)
            self.prepare_seconds = time.monotonic() - began

    def run(self, job: Any, on_event: Send, timeout_seconds: float | None = None) -> End:
        """Do a job; `on_event` receives each event, name first.

        After `timeout_seconds`, or when `on_event` or Ctrl-C raises, the job is killed with everything that it started.
        A `WanstoreError` of the job's is raised here.
        """
        self.prepare()
        assert self._server
        server = self._server
        timed_out, status = threading.Event(), None

        def stop() -> None:
            timed_out.set()
            _kill(server)

        timer = threading.Timer(timeout_seconds or threading.TIMEOUT_MAX, stop)
        timer.daemon = True
        timer.start()
        try:
            status = _hear(server, job, on_event)
        finally:
            timer.cancel()
            if status is None or server.returncode is not None:
                self._stop()  # the next job has a new one
        words = self._last_words(status)
        return End(True, f"not done after {timeout_seconds:g} s") if timed_out.is_set() else End(False, words)

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server:
            assert server.stdin
            assert server.stdout
            _kill(server)
            server.wait()
            _drain(server.stdout)
            server.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                server.stdin.close()

    def _last_words(self, status: int) -> str:
        # The processes write where this file's position is: it must stay.
        said = os.pread(self._errors.fileno(), os.fstat(self._errors.fileno()).st_size, self._heard)
        self._heard += len(said)
        lines = said.decode(errors="replace").strip().splitlines()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"{how}: {lines[-1].strip()[:300]}" if lines else how


def _hear(server: subprocess.Popen[str], job: Any, on_event: Send) -> int:
    """Send a job and pass its events on; its exit status."""
    assert server.stdin
    assert server.stdout
    with contextlib.suppress(BrokenPipeError):
        server.stdin.write(json.dumps(to_json(job)) + "\n")
        server.stdin.flush()  # and left open: the worker lives as long as it is
    for line in server.stdout:
        try:
            event, *args = json.loads(line)
        except json.JSONDecodeError:  # killed in the middle of a line
            continue
        if event == _ENDED:
            return int(args[0])
        if event == _REFUSED:
            raise WanstoreError(*args)
        on_event(event, *args)
    return server.wait()


def _drain(pipe: IO[str]) -> None:
    """Wait until nobody holds the other end: the job has ended, its memory is free. What left its session may stay."""
    end = time.monotonic() + _ENDS_WITHIN_SECONDS
    while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        if not os.read(pipe.fileno(), 1 << 16):
            return


def _kill(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:  # not waited for yet, so its number has not been reused
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# --- in the processes


def serve(name: str) -> None:
    """Do the jobs on stdin by the worker module `name`, each in a process forked off this one."""
    # Neither what is printed nor what a job starts gets at the parent's pipes.
    jobs, lines = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull) as nothing:  # noqa: PTH123 - it is no place in a file system
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    try:
        worker = import_module(name)
        worker.prepare()
    except ModuleNotFoundError as error:
        if not error.name or "." in error.name:  # a part of a package that is there
            raise
        _send(lines, _ABSENT, str(error), error.name)
        return
    gc.freeze()  # a job that collected what is imported would copy all of it: a second, for each job
    _send(lines, _READY)
    for line in jobs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those of BLAS know what a fork is
            child = os.fork() if _FORKS else 0
        if child == 0:
            _work(worker, json.loads(line), partial(_send, lines), jobs.fileno())
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines.write("\n")  # it may have been killed in the middle of a line
        _send(lines, _ENDED, status)


def _work(worker: Any, document: Any, send: Send, jobs: int) -> None:
    threading.Thread(target=_die_with_parent, args=(jobs,), daemon=True).start()
    try:
        worker.do(from_json(document, worker.Job), send)
    except WanstoreError as error:
        send(_REFUSED, error.what, error.next_step)


def _send(lines: IO[str], *event: Any) -> None:
    lines.write(json.dumps(event) + "\n")


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


def _die_with_parent(jobs: int) -> None:
    """End when no more jobs can come: the parent is gone, and nobody needs the result."""
    while os.read(jobs, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1])
