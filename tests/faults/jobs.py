"""Setup, replace, resume and delete as the command line does them, each broken at every call that changes the disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs
import torch

import wanstore
import wanstore.building._skeleton  # the heavy imports, once: each run is a fork
import wanstore.building._tokenizer
from tests.faults.tally import Tally
from tests.faults.touches import How, Touch, break_from, kill, refuse, tear
from wanstore.cli import main
from wanstore.interfaces import Quiet
from wanstore.stores.local import LocalStore

BREAKS: dict[str, tuple[Callable[[], How], int]] = {
    "killed": (lambda: kill, 1),
    "killed inside a write": (lambda: tear, 1),
    "no space left": (lambda: refuse(errno.ENOSPC), 1),
    "input/output error": (lambda: refuse(errno.EIO), 1),
    "permission denied": (lambda: refuse(errno.EACCES), 3),
    "no space left from there on": (lambda: refuse(errno.ENOSPC, stays=True), 4),
    "the disk fails from there on": (lambda: refuse(errno.EIO, stays=True), 4),
}
"""What happens to a call, and its step: 3 is every third call."""
_PATIENCE_SECONDS = 60
"""A run that hangs is ended by SIGALRM, which is a fault."""
_UNCONFIRMED = "but the disk did not confirm it"


@attrs.frozen
class Job:
    """`before` is the store that it begins with, `arguments` the command that does it, but for the store.

    `after` and `old` are the recipes that `w` may have when it is done, and before it; None is no pipeline.
    """

    name: str
    before: Path
    arguments: tuple[str, ...]
    old: str | None
    after: str | None


@attrs.frozen
class End:
    """How a run ended: its exit status, negative for a signal, and what it said on stderr."""

    status: int
    said: str

    @property
    def fault(self) -> str | None:
        """What is wrong with the way it ended: it may be killed, do its work, or fail in one line."""
        lines = self.said.splitlines()
        if self.status not in (0, 1, -signal.SIGKILL) or "Traceback" in self.said:
            return f"status {self.status}: {self.said[-3000:]}"
        if self.status == 1 and [line for line in lines if line.startswith("wanstore: ")] != lines[-1:]:
            return f"not one line: {self.said[-3000:]}"
        return None


def make_jobs(old_source: Path, new_source: Path, folder: Path) -> list[Job]:
    """The four jobs, and the stores that they begin with, below `folder`."""
    torch.set_num_threads(1)
    empty, full, half = folder / "empty", folder / "full", folder / "half"
    empty.mkdir()
    old = wanstore.setup(str(old_source), full, name="w").recipe
    new = wanstore.setup(str(new_source), folder / "made", name="w").recipe

    class Interrupting(Quiet):
        def advance(self, task: str, amount: int) -> None:
            if len((half / ".wanstore/stages/w/scratch/journal.jsonl").read_text().splitlines()) > 3:
                raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        wanstore.setup(str(new_source), half, name="w", progress=Interrupting())
    begin = ("setup", str(new_source), "--name", "w")
    return [
        Job("setup", empty, begin, None, new),
        Job("replace", full, (*begin, "--replace"), old, new),
        Job("resume", half, begin, None, new),
        Job("delete", full, ("delete", "w"), old, None),
    ]


def run(arguments: tuple[str, ...], root: Path, before: Callable[[], object] = lambda: None) -> End:
    """`wanstore` with `arguments` and the store at `root`, in a fork that calls `before` first."""
    said = root.with_name(f"{root.name}.stderr")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            signal.alarm(_PATIENCE_SECONDS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            before()
            main([*arguments, "--store", str(root)])
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return End(status, said.read_text())


def calls_of(job: Job, folder: Path) -> list[Touch]:
    """The calls of an unbroken run that change something below its root. Threads may order a few of them otherwise."""
    root, told = folder / "counted", folder / "calls"
    shutil.copytree(job.before, root, symlinks=True)

    def counting() -> None:
        plain_write, file = os.write, os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # break_from replaces write

        def note(touched: Touch) -> None:
            plain_write(file, f"{touched.call} {'half' if touched.half else ''}\n".encode())

        break_from(0, root, note)

    end = run(job.arguments, root, counting)
    assert end.status == 0, end
    shutil.rmtree(root)
    return [
        Touch(call, int if half else None) for call, half in (line.split(" ") for line in told.read_text().splitlines())
    ]


def numbers_of(calls: list[Touch], kind: str, *, long: bool, turn: int) -> list[int]:
    """At which of a job's calls `kind` is tried: at all, or each few; not `long`, at one, another in each `turn`."""
    fit = [n for n, call in enumerate(calls) if kind != "killed inside a write" or call.half]
    return fit[:: BREAKS[kind][1]] if long else fit[turn * 31 % max(1, len(fit)) :][:1]


def break_job(job: Job, kind: str, folder: Path, numbers: list[int]) -> Tally:
    """`job` broken at those calls: what is left is whole, what was said is true, and the next run ends well."""
    tally, how = Tally(), BREAKS[kind][0]
    root = folder / f"store-{os.getpid()}"
    for number in numbers:
        shutil.copytree(job.before, root, symlinks=True)
        reached, end = _broken_run(job, root, number, how())
        # Done in spite of a kill: the call had no middle to be killed in.
        if reached and not (kind == "killed inside a write" and end.status == 0):
            tally.tried(f"{job.name}, {kind}")
            for fault in _faults(job, LocalStore(root), end):
                tally.failed(f"{job.name}, {kind}", f"call {number}, {reached}: {fault}")
        shutil.rmtree(root)
    return tally


def _broken_run(job: Job, root: Path, number: int, how: How) -> tuple[str, End]:
    """The name of the job's call `number`, which `how` happened to, and the end; empty when it makes fewer calls."""
    read, write = os.pipe()

    def doomed() -> None:
        plain_write = os.write  # break_from replaces it
        told: list[str] = []

        def breaking(touched: Touch) -> None:
            if not told:
                told.append(touched.call)
                plain_write(write, touched.call.encode())
            how(touched)

        break_from(number, root, breaking)

    end = run(job.arguments, root, doomed)
    os.close(write)
    with open(read, "rb") as told:  # noqa: PTH123
        return told.read().decode(), end


def _faults(job: Job, store: LocalStore, end: End) -> list[str]:
    """What is wrong after a run that ended so, and after the next run."""
    faults = [end.fault] if end.fault else []
    found = _state(store, faults)
    if found not in (job.old, job.after):
        faults.append(f"there is {found}, neither the old nor the new")
    told_done = end.status == 0 or _UNCONFIRMED in end.said
    if told_done and found != job.after:
        faults.append(f"it said that it was done, and it was not: {end.said}")
    if end.status == 1 and not told_done and found == job.after:
        faults.append(f"it said that it had failed, and it was done: {end.said}")
    if found != job.after or job.after is not None:
        again = run(job.arguments, store.root)
        if again.status != 0:
            faults.append(f"the next run ended with {again}")
    if _state(store, faults) != job.after:
        faults.append("the next run did not do it")
    if job.after is not None:
        store.sweep()
        left = [path for part in ("stages", "trash") for path in (store.root / ".wanstore" / part).iterdir()]
        if left:
            faults.append(f"left behind: {left}")
    return faults


def _state(store: LocalStore, faults: list[str]) -> str | None:
    """The recipe of `w`; what is not whole is added to `faults`."""
    listing = store.list()
    faults += [f"{one.name} cannot be read: {one.reason}" for one in listing.unreadable]
    faults += [f"{one.name} is not whole" for one in listing.pipelines if not store.verify(one.name).ok]
    return listing.pipelines[0].recipe if listing.pipelines else None
