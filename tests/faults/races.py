"""Readers and writers side by side: what a reader is told is true, and every writer ends well."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import wanstore
from tests.faults.tally import Tally
from wanstore.errors import AlreadyExistsError, BusyError, ChangedError, NotFoundError
from wanstore.stores.local import LocalStore

Step = Callable[[LocalStore], object]

_PATIENCE_SECONDS = 60
"""A round may meet nothing to race with. Each pair goes on until it has raced a few times: none is no proof."""


def races(  # noqa: C901  a table of pairs, and the small steps that it is made of
    stores: tuple[Path, Path], source: Path, folder: Path, tally: Tally, *, seconds: float, at_least: int
) -> None:
    """Each pair for so long. `stores` are two stores, each with a pipeline `w`, whose files differ."""
    templates = [LocalStore(root) for root in stores]

    def put(store: LocalStore, which: int, *, replace: bool) -> None:
        manifest = templates[which].manifest("w")
        with store.stage("w", replace=replace, resume="key") as stage:
            shutil.copytree(templates[which].root / "w", stage.path, dirs_exist_ok=True)
            (stage.path / "wanstore.json").unlink()
            stage.seal(manifest)

    turn = [0]

    def replace(store: LocalStore) -> None:
        turn[0] += 1
        put(store, turn[0] % 2, replace=True)

    def delete(store: LocalStore) -> None:
        store.delete("w")

    def create(store: LocalStore) -> None:
        put(store, 0, replace=False)

    def come_and_go(store: LocalStore) -> None:
        time.sleep(random.uniform(0, 0.3))  # long enough to be met, and to be lost in the midst
        delete(store)
        create(store)

    def convert(store: LocalStore) -> None:
        wanstore.setup(str(source), store, name="w")

    def verify(store: LocalStore) -> None:
        report = store.verify("w")
        assert report.ok, f"NOT whole: {report}"

    def load(store: LocalStore) -> None:
        wanstore.load("w", store=store, device="cpu", weights="deferred")

    def show(store: LocalStore) -> None:
        listing = store.list()
        assert not listing.unreadable, listing.unreadable

    gone, taken = (NotFoundError,), (AlreadyExistsError, BusyError)
    pairs: list[tuple[str, Step, tuple[type[Exception], ...], list[tuple[Step, tuple[type[Exception], ...]]]]] = [
        ("verify beside replace", verify, (), [(replace, ())]),
        ("load beside replace", load, (ChangedError,), [(replace, ())]),
        ("list beside replace", show, (), [(replace, ())]),
        ("verify beside delete and setup", verify, gone, [(come_and_go, ())]),
        ("load beside delete and setup", load, (ChangedError, *gone), [(come_and_go, ())]),
        ("list beside delete and setup", show, (), [(delete, gone), (create, taken)]),
        ("delete beside setup", delete, gone, [(create, taken)]),
        ("delete beside delete", delete, gone, [(delete, gone), (create, taken)]),
        ("setup beside setup", create, taken, [(create, taken), (delete, gone)]),
        ("conversion beside conversion", convert, taken, [(convert, taken), (delete, gone)]),
        ("replace beside replace", replace, taken, [(replace, taken)]),
        ("sweep beside everything", LocalStore.sweep, (), [(delete, gone), (create, taken)]),
    ]
    for kind, step, allowed, others in pairs:
        root = folder / "raced"
        put(LocalStore(root), 0, replace=False)
        children = [_loop(other, fine, root) for other, fine in others]
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds or tally.counts[kind] < at_least:
            if passed > seconds + _PATIENCE_SECONDS:
                tally.failed(kind, f"only {tally.counts[kind]} rounds met something to race with")
                break
            there = (root / "w/wanstore.json").exists()
            try:
                step(LocalStore(root))
            except allowed as error:
                if not (isinstance(error, ChangedError) or (there and isinstance(error, NotFoundError))):
                    continue  # it met nothing to race with
            except Exception as error:  # what it is, is the finding
                tally.failed(kind, f"{type(error).__name__}: {error}")
            tally.tried(kind)
        for child, errors in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            text = errors.read_text() if errors.exists() else ""
            if text:
                tally.failed(kind, text)
            errors.unlink(missing_ok=True)
        LocalStore(root).sweep()
        if not all(LocalStore(root).verify(one.name).ok for one in LocalStore(root).list().pipelines):
            tally.failed(kind, "what is left is not whole")
        shutil.rmtree(root)


def _loop(step: Step, allowed: tuple[type[Exception], ...], root: Path) -> tuple[int, Path]:
    """A fork that does `step` again and again until SIGTERM, and a file for the error that ends it early."""
    sys.stdout.flush()
    errors = root.with_name(f"errors-{time.monotonic_ns()}")
    child = os.fork()
    if child:
        return child, errors
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    try:
        while not stopped:
            try:
                step(LocalStore(root))
            except allowed:
                time.sleep(0.001)
    except BaseException:
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(0)
