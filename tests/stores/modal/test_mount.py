"""Stores on a mounted Volume: two containers, each with a view of its own, and what they see of one another."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest

import wanstore
from tests.modal_loopback.views import OpenFilesError, View
from tests.modal_loopback.volumes import Volume, Volumes
from tests.snapshots.gvisor import Sandbox, why_not
from wanstore.errors import BusyError, NotFoundError, NotSupportedError
from wanstore.interfaces import Listing, WeightStore
from wanstore.stores import local
from wanstore.stores.modal._lease import Lease
from wanstore.stores.modal._mount import MountedStore
from wanstore.testing import WeightStoreTests
from wanstore.testing.manifests import manifest_of, seal_as_is
from wanstore.testing.stores import FILES, fill, put

ROOT = Path(__file__).parents[3]


@attrs.frozen
class Container:
    """A container's Volume handle: what `modal.Volume` does there, on the container's view."""

    view: View

    def commit(self) -> None:
        self.view.commit()

    def reload(self) -> None:
        try:
            self.view.reload(os.getpid())
        except OpenFilesError as error:
            raise RuntimeError(str(error)) from error

    def store(self, lease: Callable[[str, str], Lease] | None = None) -> MountedStore:
        return MountedStore("modal://models", self.view.folder, self, lease)


class StandStill:
    """A Volume that nobody else changes."""

    def commit(self) -> None: ...
    def reload(self) -> None: ...


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volumes(tmp_path / "volumes").create("models")


@pytest.fixture
def container(volume: Volume, tmp_path: Path) -> Callable[[], Container]:
    """Starts a container with the Volume mounted."""
    numbers = iter(range(100))
    return lambda: Container(View(volume, tmp_path / f"container-{next(numbers)}" / "models", read_only=False))


@pytest.fixture(params=[True, False], ids=["swap", "no swap"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can swap two folders in one step; gVisor's cannot."""

    def refuse(*_: Path) -> None:
        raise NotSupportedError("no swap here")

    if not request.param:
        monkeypatch.setattr(local, "check_swap", refuse)
        monkeypatch.setattr(local, "swap", refuse)
    return bool(request.param)


class TestMountedStore(WeightStoreTests):
    """Everything that any store must do, with commit and reload in between."""

    @pytest.fixture
    def store(self, container: Callable[[], Container], swap: bool) -> MountedStore:
        return container().store()

    def opener(self, store: WeightStore) -> Callable[[], WeightStore]:
        """The other process is in the same container: it has the same view."""
        assert isinstance(store, MountedStore)
        return partial(MountedStore, store.url, store._local.root, StandStill(), None)


class TestTwoContainers:
    """What one does, as the other sees it."""

    def test_a_sealed_pipeline_shows_to_others_when_they_look(self, container: Callable[[], Container]) -> None:
        """The seal commits; the other container reloads because the name is missing."""
        one, other = container().store(), container().store()
        assert put(one, "w") == other.manifest("w")
        assert {path: (other.local_path("w") / path).read_bytes() for path in FILES} == FILES

    def test_half_a_pipeline_never_shows(self, container: Callable[[], Container]) -> None:
        """A background commit in mid-work makes a stage visible, which is neither listed nor loaded nor swept."""
        writer = container()
        with writer.store().stage("w", resume="key") as stage:
            fill(stage)
            writer.commit()
            other = container().store()
            assert other.list() == Listing()
            with pytest.raises(NotFoundError):
                other.local_path("w")
            other.sweep()
            put(other, "another")
            stage.seal(manifest_of(stage.path, "w"))
        assert {manifest.name for manifest in container().store().list().pipelines} == {"w", "another"}

    def test_a_dead_containers_work_is_taken_up_by_the_next(self, container: Callable[[], Container]) -> None:
        """What a background commit saved is there under the same key, in another container."""
        dead = container()
        with pytest.raises(KeyboardInterrupt), dead.store().stage("w", resume="key") as stage:
            fill(stage)
            dead.commit()
            raise KeyboardInterrupt
        with container().store().stage("w", resume="key") as stage:
            assert {path: (stage.path / path).read_bytes() for path in FILES} == FILES

    def test_who_waited_for_the_lease_is_told_what_happened(self, container: Callable[[], Container]) -> None:
        """The other setup sealed the name meanwhile: trying again finds it, and nothing of ours is left."""
        first, second = container(), container()

        class Waiting(Lease):
            @contextmanager
            def held(self) -> Iterator[Callable[[], None]]:
                put(first.store(), "w", recipe="first")
                yield lambda: None

        store = second.store(Waiting)
        with pytest.raises(BusyError, match="has just written"), store.stage("w", resume="key"):
            pytest.fail("there is nothing to write any more")
        assert store.manifest("w").recipe == "first"
        assert not list((second.view.folder / ".wanstore/stages").iterdir())

    def test_two_writers_without_a_lease_leave_one_whole_pipeline(self, container: Callable[[], Container]) -> None:
        """The later commit wins, file by file, and both wrote the same files."""
        one, other = container().store(), container().store()
        with one.stage("w") as first, other.stage("w") as second:
            fill(first)
            fill(second)
            first.seal(manifest_of(first.path, "w", "one"))
            second.seal(manifest_of(second.path, "w", "other"))
        reader = container().store()
        assert reader.verify("w").ok and reader.manifest("w").recipe == "other"

    def test_a_commit_that_was_lost_is_made_up_for_by_the_next(
        self, container: Callable[[], Container], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody sees a part of the pipeline meanwhile."""
        writer = container()
        with monkeypatch.context() as lost:
            lost.setattr(View, "commit", lambda self: None)
            put(writer.store(), "w")
        assert container().store().list() == Listing()
        writer.commit()
        assert container().store().verify("w").ok

    def test_publishing_copies_no_byte(self, container: Callable[[], Container], swap: bool) -> None:
        """The files that were staged are the very files that are read: the same inodes."""
        store = container().store()
        put(store, "w")
        with store.stage("w", replace=True) as stage:
            fill(stage)
            staged = {path: (stage.path / path).stat().st_ino for path in FILES}
            stage.seal(manifest_of(stage.path, "w", "new"))
        assert store.manifest("w").recipe == "new"
        assert {path: (store.local_path("w") / path).stat().st_ino for path in FILES} == staged


class TestReload:
    """It fails while the Volume is in use in the container, and the error says what to do."""

    @contextmanager
    def _open_file(self, folder: Path) -> Iterator[None]:
        with (folder / "used").open("rb"):
            yield

    @contextmanager
    def _mapped_file(self, folder: Path) -> Iterator[None]:
        with (folder / "used").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped:
            yield

    @contextmanager
    def _working_folder(self, folder: Path) -> Iterator[None]:
        with contextlib.chdir(folder):
            yield

    @pytest.mark.parametrize("use", ["_open_file", "_mapped_file", "_working_folder"])
    def test_a_name_that_is_missing_says_why_it_cannot_be_looked_for(
        self, container: Callable[[], Container], use: str
    ) -> None:
        """What others have sealed stays out of view until the file is closed."""
        one, other = container(), container()
        (other.view.folder / "used").write_bytes(b"x")
        put(one.store(), "w")
        with getattr(self, use)(other.view.folder), pytest.raises(NotFoundError, match="Close all files"):
            other.store().local_path("w")
        assert other.store().local_path("w").is_dir()

    def test_a_loaded_pipeline_is_in_nobodys_way(self, container: Callable[[], Container], tiny_fp16: Path) -> None:
        """Neither half of a load keeps anything of the Volume open or mapped."""
        one = container()
        shutil.copytree(tiny_fp16, one.view.folder / "w")
        seal_as_is(one.view.folder / "w")
        pipe = wanstore.load("w", store=one.store(), device="cpu", weights="deferred")
        one.reload()
        wanstore.activate(pipe, "cpu")
        one.reload()


class TestReplacingWithoutASwap:
    """Three renames instead of one swap: a container may die between any two of them."""

    @pytest.mark.parametrize("died_after", [1, 2])
    def test_the_name_is_never_without_a_whole_pipeline(
        self, container: Callable[[], Container], monkeypatch: pytest.MonkeyPatch, died_after: int
    ) -> None:
        """Readers find the old one or the new one, and the next writer tidies up."""
        monkeypatch.setattr(local, "check_swap", _refuse)
        dying = container()
        store = dying.store()
        put(store, "w", recipe="old")
        rename, renames = Path.rename, iter(range(10))

        def dies(self: Path, target: Path) -> Path:
            if next(renames) == died_after:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as death:
            death.setattr(Path, "rename", dies)
            with pytest.raises(KeyboardInterrupt):
                put(store, "w", recipe="new", replace=True)
        dying.commit()
        reader = container().store()
        assert reader.verify("w").ok and reader.manifest("w").recipe == ("old" if died_after == 1 else "new")
        successor = container()
        put(successor.store(), "w", recipe="newest", replace=True)
        assert container().store().manifest("w").recipe == "newest"
        assert not list((successor.view.folder / ".wanstore/aside").iterdir())

    def test_it_is_what_happens_under_gvisor(self) -> None:
        """Modal's containers run in it, and it does refuse to swap: the pipeline is replaced all the same."""
        if reason := why_not():
            pytest.skip(reason)
        program = """
import json, sys
from pathlib import Path
from wanstore.errors import NotSupportedError
from wanstore.interfaces import Listing, WeightStore
from wanstore.stores._atomic_swap import check_swap
from wanstore.stores.modal._mount import MountedStore
from wanstore.testing.stores import put

class Volume:
    def commit(self): pass
    def reload(self): pass

store = MountedStore("modal://models", Path("/dev/shm/models"), Volume(), None)
put(store, "w", recipe="old")
put(store, "w", recipe="new", replace=True)
try:
    check_swap(Path("/dev/shm"))
except NotSupportedError:
    print("ANSWER", json.dumps([store.verify("w").ok, store.manifest("w").recipe]))
"""
        with Sandbox([sys.executable, "-c", program], environment={"PYTHONPATH": str(ROOT)}) as sandbox:
            assert sandbox.hear("ANSWER") == [True, "new"]


def _refuse(folder: Path) -> None:
    raise NotSupportedError(f"no swap in {folder}")
