"""Jobs in processes of their own: fresh ones, that die alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.counting_worker import Job
from wanstore import _workers
from wanstore._workers import Workers
from wanstore.errors import WanstoreError

MODULE = "tests.counting_worker"


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Jobs of the counting worker."""
    with Workers(MODULE) as workers:
        yield workers


class Found(list[tuple[list[str], int, int]]):
    """What each job said: what it found in its process, that process, and its parent."""

    def hear(self, event: str, *args: Any) -> None:
        assert event == "found"
        self.append((args[0], args[1], args[2]))


def end(*processes: int) -> bool:
    """Whether they end, and soon; their last parent need not have heard of it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(one) and psutil.Process(one).status() != "zombie" for one in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def found() -> Found:
    return Found()


def test_each_job_has_a_fresh_process_with_the_same_imports_done(workers: Workers, found: Found) -> None:
    """Nothing that a job did is there for the next."""
    for what in ("one", "two"):
        assert workers.run(Job(what), found.hear).reason == "exit status 0: not an event"
    assert [seen for seen, _, _ in found] == [["prepared", "one"], ["prepared", "two"]]
    (_, first, server), (_, second, same) = found
    assert len({first, second, server}) == 3 and same == server
    assert workers.prepare_seconds > 0


@pytest.mark.parametrize(
    ("what", "reason"),
    [("die", "killed by SIGKILL: last words"), ("fail", "exit status 1: RuntimeError: it went wrong")],
)
def test_a_job_that_dies_is_told_with_its_last_words_and_the_next_is_done(
    workers: Workers, found: Found, what: str, reason: str
) -> None:
    """Half a line that it left is no event."""
    assert workers.run(Job(what), found.hear).reason == reason
    assert workers.run(Job("next"), found.hear).reason == "exit status 0: not an event"
    assert found[0][2] == found[1][2], "by the same process that has the imports done"


def test_jobs_do_not_collect_what_is_imported(workers: Workers, found: Found) -> None:
    """Each would copy all of it, which takes longer than many a job."""
    workers.run(Job("count what is frozen"), found.hear)
    assert found[-1][1] > 1000


def test_a_job_that_is_refused_raises_its_error_here(workers: Workers, found: Found) -> None:
    with pytest.raises(WanstoreError, match=r"no such thing.*Try another"):
        workers.run(Job("refuse"), found.hear)
    assert workers.run(Job("next"), found.hear).reason.startswith("exit status 0")


def test_a_job_that_takes_too_long_is_stopped_and_the_next_has_a_new_start(workers: Workers, found: Found) -> None:
    ended = workers.run(Job("hang"), found.hear, timeout_seconds=2)
    assert (ended.timed_out, ended.reason) == (True, "not done after 2 s")
    assert end(found[0][1], found[0][2])
    assert workers.run(Job("next"), found.hear, timeout_seconds=60).reason.startswith("exit status 0")


def test_what_a_job_leaves_behind_takes_no_job_of_the_next(workers: Workers, found: Found) -> None:
    """Programs that it started read another stdin."""
    for what in ("leave a reader", "next"):
        assert workers.run(Job(what), found.hear, timeout_seconds=20).reason.startswith("exit status 0")
    assert len(found) == 2


def test_a_process_that_left_its_session_is_not_waited_for(
    workers: Workers, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may live for ever."""
    monkeypatch.setattr(_workers, "_ENDS_WITHIN_SECONDS", 0.5)
    workers.run(Job("leave a session"), found.hear)
    workers._stop()
    left = found[-1][1]
    assert psutil.pid_exists(left)
    psutil.Process(left).kill()


def test_ctrl_c_ends_the_job(workers: Workers) -> None:
    """As does whatever the listener raises."""
    began: list[int] = []

    def stop(event: str, *args: Any) -> None:
        began.append(args[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.run(Job("hang"), stop)
    assert end(began[0])


def test_leaving_ends_the_process_that_waits(found: Found) -> None:
    with Workers(MODULE) as workers:
        workers.run(Job("one"), found.hear)
        assert psutil.pid_exists(found[0][2])
    assert end(found[0][2])


def test_a_worker_that_cannot_prepare_is_told(found: Found) -> None:
    with Workers("tests.no_such_worker") as workers:
        assert workers.run(Job("one"), found.hear).reason == (
            "exit status 1: ModuleNotFoundError: No module named 'tests.no_such_worker'"
        )


def test_a_package_that_is_not_installed_is_missing_here_too(found: Found) -> None:
    with Workers("no_such_package") as workers, pytest.raises(ModuleNotFoundError, match="no_such_package") as got:
        workers.run(Job("one"), found.hear)
    assert got.value.name == "no_such_package"


def test_where_nothing_may_be_forked_each_job_prepares_for_itself(
    workers: Workers, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITHOUT_FORK", "1")
    for what in ("one", "die", "two"):
        workers.run(Job(what), found.hear)
    assert [seen for seen, _, _ in found] == [["prepared", "one"], ["prepared", "die"], ["prepared", "two"]]
    assert len({process for _, process, _ in found}) == 3


def test_a_parent_that_dies_takes_the_job_and_its_process_along() -> None:
    """Whatever killed it; nobody needs the result."""
    code = (
        "import os, signal\nfrom tests.counting_worker import Job\nfrom wanstore._workers import Workers\n"
        "def die(event, found, job, server):\n    print(job, server, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with Workers({MODULE!r}) as workers:\n    workers.run(Job('hang'), die)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout
    job, server = map(int, said.split())
    assert end(job, server)
