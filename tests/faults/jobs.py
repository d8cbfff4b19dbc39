"""Setup, replace, resume and delete, each broken at every call that changes the disk."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
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
from tests.faults.touches import break_at, kill, refuse
from wanstore.cli._faults import _text_of
from wanstore.interfaces import Quiet
from wanstore.stores.local import LocalStore

ERRORS = {"no space left": errno.ENOSPC, "input/output error": errno.EIO, "permission denied": errno.EACCES}
_DONE, _REFUSED, _TOLD_DONE, _TRACEBACK = 0, 3, 4, 5


@attrs.frozen
class Job:
    """`before` is the store that it begins with, `work` what it does to the store at a path.

    `after` and `old` are the recipes that `w` may have when it is done, and before it; None is no pipeline.
    """

    name: str
    before: Path
    work: Callable[[LocalStore], object]
    old: str | None
    after: str | None


def make_jobs(old_source: Path, new_source: Path, folder: Path) -> list[Job]:
    """The four jobs, and the stores that they begin with, below `folder`."""
    torch.set_num_threads(1)
    shutil.copytree(old_source, folder / "old-source")
    shutil.copytree(new_source, folder / "new-source")
    empty, full, half = folder / "empty", folder / "full", folder / "half"
    empty.mkdir()
    old = wanstore.setup(str(folder / "old-source"), full, name="w").recipe
    new = wanstore.setup(str(folder / "new-source"), folder / "made", name="w").recipe

    class Interrupting(Quiet):
        def advance(self, task: str, amount: int) -> None:
            if len((half / ".wanstore/stages/w/scratch/journal.jsonl").read_text().splitlines()) > 3:
                raise KeyboardInterrupt

    def begin(store: LocalStore, *, replace: bool = False) -> None:
        wanstore.setup(str(folder / "new-source"), store, name="w", replace=replace)

    with suppress(KeyboardInterrupt):
        wanstore.setup(str(folder / "new-source"), half, name="w", progress=Interrupting())
    return [
        Job("setup", empty, begin, None, new),
        Job("replace", full, lambda store: begin(store, replace=True), old, new),
        Job("resume", half, begin, None, new),
        Job("delete", full, lambda store: store.delete("w"), old, None),
    ]


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a fork that does `work`: as `os.waitpid` gives it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = _TRACEBACK
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            status = _DONE
        except BaseException as error:  # what it is, is the finding
            text = _text_of(error)
            if text is not None:
                status = _TOLD_DONE if "but the disk did not confirm it" in text else _REFUSED
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def kills(job: Job, folder: Path, tally: Tally, *, step: int) -> None:
    """Killed at each call: what is left is whole, and the next run ends well."""
    _each(job, folder, tally, f"{job.name} killed", lambda: kill, step)


def errors(job: Job, folder: Path, tally: Tally, *, step: int) -> None:
    """Each call refused: one clean line, the truth about what was done, and the next run ends well."""
    for name, code in ERRORS.items():
        _each(job, folder, tally, f"{job.name}, {name}", lambda code=code: refuse(code), step)  # type: ignore[misc]


def _each(job: Job, folder: Path, tally: Tally, kind: str, how: Callable[[], Callable[[], None]], step: int) -> None:
    root = folder / "store"
    for number in itertools.count(0, step):
        shutil.copytree(job.before, root, symlinks=True)
        broken, status = _broken_run(job, root, number, how())
        if broken:
            tally.tried(kind)
            for fault in _faults(job, LocalStore(root), status):
                tally.failed(kind, f"call {number}: {fault}")
        shutil.rmtree(root)
        if not broken:  # there are not so many calls
            return


def _broken_run(job: Job, root: Path, number: int, how: Callable[[], None]) -> tuple[bool, int]:
    """Whether the job came to its call `number` in a fork, where `how` happened to it; and its exit status."""
    read, write = os.pipe()

    def breaking() -> None:
        os.write(write, b"x")
        how()

    def doomed() -> None:
        break_at(number, root, breaking)
        job.work(LocalStore(root))

    status = in_child(doomed)
    os.close(write)
    with open(read, "rb") as told:  # noqa: PTH123
        return bool(told.read()), status


def _faults(job: Job, store: LocalStore, status: int) -> list[str]:
    """What is wrong after a run that ended with `status`, and after the next run."""
    faults: list[str] = []
    found = _state(store, faults)
    code = os.waitstatus_to_exitcode(status)
    if found not in (job.old, job.after):
        faults.append(f"there is {found}, neither the old nor the new")
    if code == _TRACEBACK:
        faults.append("a traceback")
    if code in (_DONE, _TOLD_DONE) and found != job.after:
        faults.append("it said that it was done, and it was not")
    if code == _REFUSED and found == job.after != job.old:
        faults.append("it said that it had failed, and it was done")
    if found != job.after or job.after is not None:
        again = os.waitstatus_to_exitcode(in_child(lambda: job.work(store)))
        if again != _DONE:
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
