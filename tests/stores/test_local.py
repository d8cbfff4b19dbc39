"""LocalStore: the conformance suite, and what is particular to a disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from wanstore.errors import (
    AlreadyExistsError,
    BusyError,
    DiskFullError,
    NotFoundError,
    NotSupportedError,
    WanstoreError,
)
from wanstore.interfaces import Listing, Progress, VerifyReport
from wanstore.manifest import Manifest
from wanstore.stores import local, open_store
from wanstore.stores._folder import verify_folder
from wanstore.stores.local import LocalStore
from wanstore.testing import WeightStoreTests
from wanstore.testing.manifests import manifest_of
from wanstore.testing.stores import fill, put


class TestLocalStore(WeightStoreTests):
    """Everything that any store must do."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "store")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_reading_creates_nothing(store: LocalStore) -> None:
    """A look at a store that is not there leaves no folder behind."""
    assert store.list() == Listing()
    store.sweep()
    assert not store.root.exists()


def test_what_an_interpreter_shows_is_short(store: LocalStore) -> None:
    """A store by its address; a manifest without its hundred hashes."""
    manifest = put(store, "w")
    assert repr(store) == f"<LocalStore at {store.url}>"
    assert repr(manifest) == f"<Manifest of 'w', 0.00 GB in 2 files, digest {manifest.digest[:12]}>"


def test_a_file_url_and_a_path_name_the_same_store(tmp_path: Path) -> None:
    """URLs may hold escaped characters."""
    assert LocalStore((tmp_path / "a b").as_uri()).root == LocalStore(tmp_path / "a b").root


@pytest.mark.parametrize("location", ["file://relative/x", "file://host/x", "file:/x", "file:x"])
def test_a_url_of_no_folder_of_this_machine_is_refused(location: str) -> None:
    """A host would be dropped silently, and the rest taken for a path."""
    with pytest.raises(NotSupportedError, match="file:///FOLDER"):
        open_store(location)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    """It is not taken for an empty one."""
    (tmp_path / "file").write_text("")
    store = LocalStore(tmp_path / "file")
    with pytest.raises(NotSupportedError, match="file is a file"):
        store.list()
    with pytest.raises(NotSupportedError, match="file is a file"), store.stage("w"):
        pass


def test_a_linked_folder_is_not_a_stored_pipeline(store: LocalStore, tmp_path: Path) -> None:
    """A link could lead out of the store, so it is neither listed, read nor replaced."""
    put(LocalStore(tmp_path / "elsewhere"), "w")
    store.root.mkdir()
    (store.root / "w").symlink_to(tmp_path / "elsewhere" / "w")
    listing = store.list()
    assert not listing.pipelines and "is a link" in listing.unreadable[0].reason
    with pytest.raises(NotFoundError):
        store.local_path("w")
    with pytest.raises(AlreadyExistsError), store.stage("w", replace=True):
        pass


def test_a_link_inside_a_sealed_folder_is_damage(store: LocalStore, tmp_path: Path) -> None:
    """A link to equal bytes passes no verification: it can be pointed elsewhere."""
    put(store, "w")
    file = store.root / "w" / "model_index.json"
    (tmp_path / "copy").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "copy")
    assert store.verify("w").damaged == ("model_index.json",)


def test_a_foreign_folder_is_never_replaced(store: LocalStore) -> None:
    """A folder without a manifest may be somebody's only copy."""
    (store.root / "w").mkdir(parents=True)
    (store.root / "w" / "precious").write_text("data")
    with pytest.raises(AlreadyExistsError), store.stage("w", replace=True):
        pass
    assert (store.root / "w" / "precious").exists()


def _newer(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 99'))


def _linked(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(12 << 30)


NEIGHBOURS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda path: path.write_text("{"), "is not a manifest"),
    "deep": (lambda path: path.write_text("[" * 1_000_000), "is not a manifest"),
    "sparse": (_sparse, "larger than 16 MiB"),
    "surrogate": (lambda path: path.write_text(r'{"schema_version": "\ud800"}'), "schema_version"),
    "newer": (_newer, "schema version 99, this wanstore reads up to 2"),
    "linked": (_linked, "no regular file"),
    "pipe": (_pipe, "no regular file"),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_what_cannot_be_read_is_listed_with_the_reason_and_hides_no_other(store: LocalStore, kind: str) -> None:
    """One bad neighbour breaks nothing for the others, whatever it is."""
    change, reason = NEIGHBOURS[kind]
    good = put(store, "good")
    put(store, "bad")
    change(store.root / "bad" / "wanstore.json")
    listing = store.list()
    assert listing.pipelines == (good,)
    assert [one.name for one in listing.unreadable] == ["bad"] and reason in listing.unreadable[0].reason


def test_a_folder_whose_name_no_pipeline_may_have_is_listed_as_unreadable(store: LocalStore) -> None:
    """Such as a copy that a file manager made, or bytes that are no text."""
    put(store, "w")
    for name in (b"w (copy)", b"\xff"):
        shutil.copytree(store.root / "w", store.root / os.fsdecode(name))
    assert [one.name for one in store.list().unreadable] == ["w (copy)", "\udcff"]


def test_a_pipeline_with_a_torn_manifest_can_be_deleted(store: LocalStore) -> None:
    """There is nothing to ask it first."""
    put(store, "torn")
    (store.root / "torn" / "wanstore.json").write_text("{")
    store.delete("torn")
    assert not (store.root / "torn").exists()


def test_a_folder_that_may_not_be_read_is_listed_and_hides_no_other(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as lost+found at the root of a disk, or another user's pipeline."""
    good = put(store, "good")
    put(store, "closed")
    (store.root / "round").symlink_to("round")
    plain = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.parent.name == "closed":  # what the system says to anybody but root
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    listing = store.list()
    assert listing.pipelines == (good,) and [one.name for one in listing.unreadable] == ["closed"]
    assert "Permission denied" in listing.unreadable[0].reason


@pytest.mark.parametrize("place", [".wanstore", ".wanstore/stages", ".wanstore/trash", ".wanstore/locks"])
def test_the_stores_own_folders_are_never_followed_out_of_it(store: LocalStore, tmp_path: Path, place: str) -> None:
    """A sweep would delete a stranger's folders."""
    precious = tmp_path / "elsewhere" / "stages" / "w" / "precious"
    precious.mkdir(parents=True)
    (tmp_path / "elsewhere" / "trash").mkdir()
    put(store, "w")
    if (store.root / place).is_dir():
        shutil.rmtree(store.root / place)
    (store.root / place).symlink_to(tmp_path / "elsewhere" / place.partition("/")[2])
    for ask in (store.sweep, lambda: put(store, "v"), lambda: put(store, "w", replace=True), lambda: store.delete("w")):
        with suppress(NotSupportedError):
            ask()
    assert precious.is_dir() and {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"stages", "trash"}


def test_links_in_the_stores_own_folders_are_removed_and_not_followed(store: LocalStore, tmp_path: Path) -> None:
    """What they lead to stays."""
    precious = tmp_path / "elsewhere" / "pipeline"
    precious.mkdir(parents=True)
    (precious / "file").write_text("data")
    put(store, "w")
    for link in ("stages/x", "trash/x"):
        (store.root / ".wanstore" / link).symlink_to(tmp_path / "elsewhere")
    store.sweep()
    for part in ("pipeline", "scratch"):
        with pytest.raises(RuntimeError), store.stage("v", resume="key") as stage:
            raise RuntimeError
        shutil.rmtree(stage.path.parent / part)
        (stage.path.parent / part).symlink_to(precious)
        with store.stage("v", resume="key") as stage:
            assert not list(stage.path.iterdir()) and not list(stage.scratch.iterdir())
    assert (precious / "file").read_text() == "data"


@pytest.mark.parametrize("damage", [b"\xff", b"", b"x" * 10_000, None], ids=["bytes", "empty", "long", "folder"])
def test_a_damaged_key_of_kept_work_begins_anew(
    store: LocalStore, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Not a traceback at every later run of that name."""
    with pytest.raises(RuntimeError), store.stage("w", resume="key") as stage:
        fill(stage)
        raise RuntimeError
    key = stage.path.parent / "key"
    key.unlink()
    key.mkdir() if damage is None else key.write_bytes(damage)
    with store.stage("w", resume="key") as stage:
        assert not list(stage.path.iterdir())
    if damage is None or len(damage) > 5000:
        assert "beginning anew" in caplog.text


def test_new_folders_above_the_store_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a loss of power takes the pipeline with its parents."""
    forced: set[Path] = set()
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        forced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put(LocalStore(tmp_path / "a" / "b" / "store"), "w")
    assert {tmp_path, tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/store"} <= forced


def test_an_error_after_the_last_step_says_that_it_is_done(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads it as "nothing happened" would do it all again."""

    def refuse(path: Path) -> None:
        if path == store.root:
            raise OSError(errno.EIO, "Input/output error")

    put(store, "other")
    monkeypatch.setattr(local, "sync", refuse)
    with pytest.raises(WanstoreError, match=r"w is sealed, but the disk did not confirm it.*wanstore verify w"):
        put(store, "w")
    assert store.verify("w").ok
    with pytest.raises(WanstoreError, match=r"'w' is deleted from .*, but the disk did not confirm it"):
        store.delete("w")
    assert [one.name for one in store.list().pipelines] == ["other"]


def test_a_deleted_pipeline_that_leaves_files_behind_is_deleted(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The name is free, which is what was asked for; the next run removes the rest."""
    put(store, "w")
    with monkeypatch.context() as patch:
        patch.setattr(local, "remove_tree", lambda path: None)
        store.delete("w")
    assert "removed by the next setup" in caplog.text and store.list() == Listing()
    store.sweep()
    assert not list((store.root / ".wanstore/trash").iterdir())


def test_deletes_beside_sweeps_go_well(store: LocalStore) -> None:
    """A sweep takes what is in the trash, not the trash itself."""
    stop = threading.Event()
    failures: list[Exception] = []

    def sweep() -> None:
        while not stop.is_set():
            try:
                store.sweep()
            except Exception as error:
                failures.append(error)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(40):
            put(store, "w")
            store.delete("w")
    finally:
        stop.set()
        sweeper.join()
    assert not failures and store.list() == Listing()


def test_verify_goes_on_with_the_new_pipeline_when_it_is_replaced_meanwhile(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole pipeline is never called damaged, neither the old nor the new."""
    put(store, "w", recipe="old")
    replaced: list[bool] = []

    def verify_meanwhile(folder: Path, manifest: Manifest, progress: Progress | None) -> VerifyReport:
        if not replaced:
            with store.stage("w", replace=True) as stage:
                fill(stage, {"model_index.json": b"{}"})
                stage.seal(manifest_of(stage.path, "w", "new"))
            replaced.append(True)
        return verify_folder(folder, manifest, progress)

    monkeypatch.setattr(local, "verify_folder", verify_meanwhile)
    report = store.verify("w")
    assert report.ok and report.files == 1


def test_verify_of_what_is_deleted_meanwhile_says_so(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not damaged, it is gone."""
    put(store, "w")

    def verify_meanwhile(folder: Path, manifest: Manifest, progress: Progress | None) -> VerifyReport:
        store.delete("w")
        return verify_folder(folder, manifest, progress)

    monkeypatch.setattr(local, "verify_folder", verify_meanwhile)
    with pytest.raises(NotFoundError):
        store.verify("w")


def _stage_and_wait(root: Path, name: str, ready: multiprocessing.synchronize.Event) -> None:
    with LocalStore(root).stage(name, resume="key") as stage:
        fill(stage)
        ready.set()
        time.sleep(60)


def _live_stage(root: Path, name: str) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_stage_and_wait, args=(root, name, ready), daemon=True)
    process.start()
    assert ready.wait(30)
    return process


def test_a_live_runs_stage_is_busy_and_is_not_swept(store: LocalStore) -> None:
    """Another process's work in progress is left alone, also by a sweep and by another setup."""
    process = _live_stage(store.root, "w")
    try:
        with pytest.raises(BusyError), store.stage("w", resume="key"):
            pass
        put(store, "other")
        store.sweep()
        assert (store.root / ".wanstore/stages/w/pipeline/model_index.json").exists()
    finally:
        process.kill()
        process.join()


def test_a_killed_runs_stage_is_taken_up_by_its_key_or_swept(store: LocalStore) -> None:
    """kill -9 leaves work that the same recipe finds, and that any other run clears away."""
    for successor in ("w", "other"):
        process = _live_stage(store.root, "w")
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        with store.stage(successor, resume="key") as stage:
            assert bool(list(stage.path.iterdir())) is (successor == "w")
            assert (store.root / ".wanstore/stages/w").exists() is (successor == "w")
    assert store.list() == Listing()
    assert not list((store.root / ".wanstore/stages").iterdir())


def test_a_reader_never_sees_a_gap_while_pipelines_are_replaced(store: LocalStore) -> None:
    """Whenever it is asked, the name holds one whole pipeline."""
    put(store, "w")
    seen, stop = 0, threading.Event()
    failures: list[WanstoreError] = []

    def read() -> None:
        nonlocal seen
        while not stop.is_set():
            try:
                store.manifest("w")
                seen += 1
            except WanstoreError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(25):
        put(store, "w", recipe=str(number), replace=True)
    stop.set()
    reader.join()
    assert not failures and seen
    assert store.manifest("w").recipe == "24"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_clear_error_and_publishes_nothing(tmp_path: Path) -> None:
    """On a file system of 1 MB, writing 2 MB ends in DiskFullError; what was stored stays whole."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store = LocalStore(tmp_path)
        put(store, "small")
        with pytest.raises(DiskFullError), store.stage("large") as stage:
            fill(stage, {"weights": bytes(2 << 20)})
        assert [manifest.name for manifest in store.list().pipelines] == ["small"]
        put(store, "another")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_the_store_needs_neither_torch_nor_diffusers() -> None:
    """A store is a matter of files: opening one imports nothing heavy."""
    code = "import sys, wanstore; wanstore.open_store('.').list(); print({'torch', 'diffusers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_sealed_stage_leaves_no_work_behind(store: LocalStore) -> None:
    """After the seal the hidden folder holds no stage and no trash."""
    with store.stage("w", resume="key") as stage:
        fill(stage)
        (stage.scratch / "journal").write_text("...")
        stage.seal(manifest_of(stage.path, "w"))
    assert not list((store.root / ".wanstore/stages").iterdir())
