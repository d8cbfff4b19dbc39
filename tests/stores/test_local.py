"""LocalStore: the conformance suite, and what is particular to a disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
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
from wanstore.stores import open_store
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
    assert store.list() == []
    store.sweep()
    assert not store.root.exists()


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
    assert store.list() == []
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


def test_a_damaged_pipeline_can_be_deleted_and_hides_no_other(store: LocalStore) -> None:
    """A torn manifest takes only its own folder out of the list."""
    put(store, "good")
    put(store, "torn")
    (store.root / "torn" / "wanstore.json").write_text("{")
    assert [manifest.name for manifest in store.list()] == ["good"]
    store.delete("torn")
    assert not (store.root / "torn").exists()


def test_a_folder_that_may_not_be_read_hides_no_other(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as lost+found at the root of a disk."""
    put(store, "good")
    (store.root / "lost+found").mkdir()
    plain = Path.is_file

    def is_file(path: Path) -> bool:
        if "lost+found" in path.parts:
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert [manifest.name for manifest in store.list()] == ["good"]


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
    assert store.list() == []
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
        assert [manifest.name for manifest in store.list()] == ["small"]
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
