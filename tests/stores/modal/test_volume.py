"""ModalVolumeStore: the conformance suite from outside and on a mount, and what faults do to it."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import pytest

import wanstore
from tests.modal_loopback import ControlPlane
from wanstore import _installed
from wanstore.errors import (
    AccessError,
    AlreadyExistsError,
    BusyError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
)
from wanstore.interfaces import Listing, WeightStore
from wanstore.stores import _transfers
from wanstore.stores.modal import ModalVolumeStore
from wanstore.stores.modal import _client as modal_client
from wanstore.stores.modal import _lease as modal_lease
from wanstore.stores.modal import _mount as modal_mount
from wanstore.stores.modal._client import RemoteVolume
from wanstore.stores.modal._lease import current_holder
from wanstore.stores.modal._mount import MountedStore
from wanstore.testing import WeightStoreTests
from wanstore.testing.manifests import manifest_of
from wanstore.testing.stores import FILES, fill, overwrite, put

URL = "modal://models/wan"
BIG = os.urandom(9 << 20)  # two blocks of a version 2 Volume, a blob of a version 1


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def store(control: ControlPlane, client: Any, version: int, monkeypatch: pytest.MonkeyPatch) -> ModalVolumeStore:
    """A store from outside, on an empty Volume of either version; its pauses are short."""
    control.volumes.create("models", version)
    monkeypatch.setattr(_transfers, "RETRY_DELAYS_SECONDS", (0.01,))
    return ModalVolumeStore(URL, client=client)


@pytest.fixture
def mounted(control: ControlPlane, client: Any, store: ModalVolumeStore) -> ModalVolumeStore:
    """The same Volume in a container: its own folder stands for the mount."""
    return ModalVolumeStore(URL, mount=control.volumes.folder("models"), client=client)


def call(name: str, version: int) -> str:
    """An RPC's name for a Volume of that version."""
    return name if version == 1 else f"{name}2"


class TestModalVolumeStore(WeightStoreTests):
    """Everything that any store must do, through the real client."""

    @pytest.fixture
    def store(self, control: ControlPlane, client: Any, version: int) -> ModalVolumeStore:
        self.control = control
        control.volumes.create("models", version)
        return ModalVolumeStore(URL, client=client)

    def damage(self, store: WeightStore, name: str, path: str, data: bytes | None) -> None:
        overwrite(self.control.volumes.folder("models") / "wan" / name / path, data)

    def stored_bytes(self, store: WeightStore, tmp_path: Path) -> int:
        """Without the blocks, which Modal itself drops in its own time."""
        return super().stored_bytes(store, self.control.volumes.folder("models"))


class TestMountedModalVolumeStore(WeightStoreTests):
    """The same in a container."""

    @pytest.fixture
    def store(self, control: ControlPlane, client: Any, monkeypatch: pytest.MonkeyPatch) -> ModalVolumeStore:
        mount = control.volumes.create("models").folder
        monkeypatch.setenv("WANSTORE_MODAL_MOUNTS", f"models={mount}")
        return ModalVolumeStore("modal://models", client=client)


class TestFromOutside:
    """Through the client."""

    def test_only_a_stage_creates_the_volume(self, control: ControlPlane, client: Any) -> None:
        """A look at a Volume that is not there finds nothing, and leaves nothing."""
        store = ModalVolumeStore("modal://new", client=client)
        assert store.list() == Listing()
        store.sweep()
        with pytest.raises(NotFoundError, match="no Modal Volume 'new'"):
            store.manifest("w")
        assert control.volumes.named("new") is None
        put(store, "w")
        assert control.volumes.named("new") and store.verify("w").ok

    def test_large_files_go_up_and_come_down(self, store: ModalVolumeStore) -> None:
        """Several blocks, one of which ends in zeros that are never sent, and an empty file."""
        files = {"a.safetensors": BIG, "b": bytes(5 << 20), "c": b""}
        with store.stage("w") as stage:
            fill(stage, files)
            stage.seal(manifest_of(stage.path, "w"))
        folder = store.local_path("w")
        assert {path: (folder / path).read_bytes() for path in files} == files

    def test_a_second_local_path_fetches_no_file(self, control: ControlPlane, store: ModalVolumeStore) -> None:
        """What is in the cache under the manifest's digest is used again."""
        put(store, "w")
        first = store.local_path("w")
        before = control.faults.calls["GET"]
        assert store.local_path("w") == first and control.faults.calls["GET"] == before + 1  # the manifest

    def test_unavailable_is_healed(self, control: ControlPlane, store: ModalVolumeStore, version: int) -> None:
        """A control plane that hiccups at every call delays a round trip, no more."""
        for name in ("VolumeListFiles", "VolumePutFiles", "VolumeRemoveFile"):
            control.faults.fail(call(name, version), 1)
        for name in ("VolumeGetOrCreate", "MountPutFile"):
            control.faults.fail(name, 1)
        put(store, "w")
        control.faults.fail("VolumeGetFile2", 5)  # more than the client tries by itself
        assert {path: (store.local_path("w") / path).read_bytes() for path in FILES} == FILES

    def test_failed_blocks_are_healed(self, control: ControlPlane, store: ModalVolumeStore) -> None:
        """Blocks that fail on their way up or down are sent again."""
        control.faults.fail("PUT", 2)
        with store.stage("w") as stage:
            fill(stage, {"a": BIG})
            stage.seal(manifest_of(stage.path, "w"))
        control.faults.fail("GET", 2)
        assert (store.local_path("w") / "a").read_bytes() == BIG

    def test_an_outage_is_one_error_and_the_next_run_goes_on(
        self, control: ControlPlane, store: ModalVolumeStore, version: int
    ) -> None:
        """The stage stays, nothing is published, and the same key seals it later."""
        control.faults.fail(call("VolumeRemoveFile", version), 10_000)
        with pytest.raises(UnreachableError), store.stage("w", resume="key") as stage:
            fill(stage)
            stage.seal(manifest_of(stage.path, "w"))
        control.faults.clear()
        assert store.list() == Listing()
        with store.stage("w", resume="key") as stage:
            stage.seal(manifest_of(stage.path, "w"))
        assert store.verify("w").ok

    @pytest.mark.parametrize("replace", [False, True], ids=["new", "replace"])
    def test_an_upload_killed_before_its_manifest_is_never_listed(
        self, control: ControlPlane, store: ModalVolumeStore, mounted: ModalVolumeStore, version: int, replace: bool
    ) -> None:
        """kill -9 between the files and the manifest: no reader sees the folder, and the next run completes it."""
        if replace:
            with store.stage("w") as stage:
                fill(stage, {"model_index.json": b"old", "old.safetensors": b"old"})
                stage.seal(manifest_of(stage.path, "w", "old"))
        puts = 3 + replace if version == 1 else 7  # version 2 asks first which blocks are missing
        control.faults.stall(call("VolumePutFiles", version), after=puts)
        program = (
            "from wanstore.stores.modal import ModalVolumeStore; from wanstore.testing.stores import put\n"
            f"put(ModalVolumeStore({URL!r}), 'w', replace={replace})"
        )
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            assert control.faults.stalled.wait(30)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        control.faults.clear()
        left = {path.name for path in (control.volumes.folder("models") / "wan/w").iterdir()}
        assert left == {"model_index.json", "vae"}
        assert store.list() == Listing() and mounted.list() == Listing()
        with pytest.raises(NotFoundError):
            store.local_path("w")
        put(store, "w", recipe="new", replace=replace)
        assert [manifest.recipe for manifest in mounted.list().pipelines] == ["new"] and store.verify("w").ok

    def test_sweep_drops_what_a_failed_upload_left(
        self, control: ControlPlane, store: ModalVolumeStore, version: int
    ) -> None:
        """Half a folder is no pipeline, and its intent says that it is ours to drop."""
        put(store, "kept")
        with pytest.raises(DamagedError), store.stage("w") as stage:
            fill(stage)
            manifest = manifest_of(stage.path, "w")
            (control.volumes.folder("models") / "wan/.wanstore/intents").mkdir(parents=True, exist_ok=True)
            (control.volumes.folder("models") / "wan/.wanstore/intents/w").write_text('{"contents": ""}')
            (control.volumes.folder("models") / "wan/w").mkdir()
            (stage.path / "model_index.json").unlink()
            stage.seal(manifest)
        store.sweep()
        left = {path.name for path in (control.volumes.folder("models") / "wan").iterdir()}
        assert left == {".wanstore", "kept"}

    def test_a_foreign_folder_is_never_replaced(self, control: ControlPlane, store: ModalVolumeStore) -> None:
        """A folder without a manifest, and without an intent of ours, may be somebody's only copy."""
        (control.volumes.folder("models") / "wan/w").mkdir(parents=True)
        (control.volumes.folder("models") / "wan/w/precious").write_text("data")
        with pytest.raises(AlreadyExistsError), store.stage("w", replace=True):
            pass

    def test_a_damaged_file_is_refused_and_the_others_are_kept(
        self, control: ControlPlane, store: ModalVolumeStore
    ) -> None:
        """A download that does not fit its hash is an error; once mended, only that file is fetched again."""
        put(store, "w")
        file = control.volumes.folder("models") / "wan/w/vae/weights.safetensors"
        good = file.read_bytes()
        file.write_bytes(bytes(len(good)))
        with pytest.raises(DamagedError, match=r"vae/weights\.safetensors"):
            store.local_path("w")
        file.write_bytes(good)
        before = control.faults.calls["GET"]
        assert (store.local_path("w") / "vae/weights.safetensors").read_bytes() == good
        assert control.faults.calls["GET"] == before + 2  # the manifest, and the one file

    def test_another_machine_at_work_is_busy_and_a_dead_one_is_not(
        self, store: ModalVolumeStore, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lease that is renewed keeps others out; one that is not is taken over."""
        monkeypatch.setattr(modal_lease, "RENEW_SECONDS", 0.1)
        monkeypatch.setattr(modal_lease, "DEAD_SECONDS", 0.6)
        monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path / "another machine"))
        other = ModalVolumeStore(URL, client=client)
        with store.stage("w") as stage:
            fill(stage)
            with pytest.raises(BusyError), other.stage("w"):
                pass
            monkeypatch.setattr(modal_lease, "RENEW_SECONDS", 1000.0)
            time.sleep(1)  # a renewal that is under way ends: it would write over what follows
            entries = modal_client.import_modal().Dict.from_name(modal_lease.DICT_NAME, client=client)
            entries.put("models/wan/w", ("dead machine", "run", 0))
            with pytest.raises(BusyError):
                stage.seal(manifest_of(stage.path, "w"))
            monkeypatch.setattr(modal_lease, "RENEW_SECONDS", 0.1)
        put(other, "w")
        assert store.verify("w").ok

    def test_without_a_dict_the_work_goes_on(self, control: ControlPlane, store: ModalVolumeStore) -> None:
        """No lease is better than no pipeline."""
        control.faults.fail("DictGetOrCreate", 10_000)
        put(store, "w")
        assert store.verify("w").ok

    @pytest.mark.parametrize("url", ["modal://", "modal:///w", "modal://a b/w", "modal://v/../w", "modal://v/.hidden"])
    def test_addresses_that_name_no_volume_are_refused(self, url: str) -> None:
        """Neither the Volume nor the prefix may lead elsewhere."""
        with pytest.raises(InvalidNameError):
            ModalVolumeStore(url)

    def test_what_cannot_be_read_is_listed_with_the_reason_and_hides_no_other(
        self, control: ControlPlane, store: ModalVolumeStore
    ) -> None:
        """Damaged, huge, of a newer schema, or of a name that none may have."""
        good = put(store, "good")
        for name in ("damaged", "huge", "newer", "w (copy)", "empty"):
            folder = control.volumes.folder("models") / "wan" / name
            shutil.copytree(control.volumes.folder("models") / "wan" / "good", folder)
            manifest = folder / "wanstore.json"
            if name == "damaged":
                manifest.write_text("{")
            elif name == "huge":
                manifest.write_bytes(b" " * (17 << 20))
            elif name == "newer":
                manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 99'))
            elif name == "empty":
                manifest.unlink()
        listing = store.list()
        assert listing.pipelines == (good,)
        reasons = {one.name: one.reason for one in listing.unreadable}
        assert sorted(reasons) == ["damaged", "huge", "newer", "w (copy)"]
        assert "larger than" in reasons["huge"] and "schema version 99" in reasons["newer"]

    def test_verify_goes_on_with_the_new_pipeline_when_it_is_replaced_meanwhile(
        self, store: ModalVolumeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Files of the old one that are gone by then are no damage, and no traceback."""
        put(store, "w", recipe="old")
        plain = RemoteVolume.sizes
        replaced: list[bool] = []

        def replaced_after(volume: RemoteVolume, folder: str) -> dict[str, int]:
            sizes = plain(volume, folder)
            if not replaced:
                replaced.append(True)
                with store.stage("w", replace=True) as stage:
                    fill(stage, {"model_index.json": b"{}"})
                    stage.seal(manifest_of(stage.path, "w", "new"))
            return sizes

        monkeypatch.setattr(RemoteVolume, "sizes", replaced_after)
        report = store.verify("w")
        assert report.ok and report.files == 1

    def test_verify_of_what_is_deleted_meanwhile_says_so(
        self, store: ModalVolumeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not damaged, it is gone."""
        put(store, "w")
        plain = RemoteVolume.sizes

        def deleted_after(volume: RemoteVolume, folder: str) -> dict[str, int]:
            sizes = plain(volume, folder)
            store.delete("w")
            return sizes

        monkeypatch.setattr(RemoteVolume, "sizes", deleted_after)
        with pytest.raises(NotFoundError):
            store.verify("w")

    def test_an_outage_after_the_last_step_is_no_error(
        self, store: ModalVolumeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What was published or deleted is; the rest is cleared away by the next run."""
        plain = RemoteVolume.remove

        def manifests_only(volume: RemoteVolume, path: str) -> None:
            if not path.endswith("wanstore.json"):
                raise UnreachableError("Modal is down")
            plain(volume, path)

        put(store, "w", recipe="old")
        with monkeypatch.context() as patch:
            patch.setattr(RemoteVolume, "remove", manifests_only)
            store.delete("w")
        assert store.list() == Listing() and "it is done" in caplog.text
        put(store, "w", recipe="new")
        assert store.manifest("w").recipe == "new" and store.verify("w").ok

    def test_a_renamed_pipeline_is_not_fetched_again(self, control: ControlPlane, store: ModalVolumeStore) -> None:
        """The cache knows it by its digest, whatever its name was when it came."""
        put(store, "w")
        first = store.local_path("w")
        (control.volumes.folder("models") / "wan/w").rename(control.volumes.folder("models") / "wan/v")
        assert store.local_path("v") == first

    @pytest.mark.parametrize("intent", [b"{", b"[]", b"\xff", b" " * 10_000])
    def test_a_damaged_intent_costs_an_upload_and_no_more(
        self, control: ControlPlane, store: ModalVolumeStore, intent: bytes
    ) -> None:
        """What it would resume is sent again."""
        place = control.volumes.folder("models") / "wan/.wanstore/intents/w"
        place.parent.mkdir(parents=True)
        place.write_bytes(intent)
        put(store, "w")
        assert store.verify("w").ok


class TestOnAMount:
    """In a container."""

    def test_both_ways_see_the_same(self, store: ModalVolumeStore, mounted: ModalVolumeStore) -> None:
        """What a laptop uploads a container loads, and the other way round."""
        first, second = put(store, "a"), put(mounted, "b")
        assert store.list() == mounted.list() == Listing((first, second))
        assert mounted.verify("a").ok and store.verify("b").ok

    def test_a_seal_commits_and_only_a_missing_name_reloads(
        self, control: ControlPlane, mounted: ModalVolumeStore
    ) -> None:
        """Commits publish to others; a reload is for what is not in view."""
        put(mounted, "w")
        assert control.faults.calls["VolumeCommit"] == 1
        before = control.faults.calls["VolumeReload"]
        mounted.local_path("w")
        assert control.faults.calls["VolumeReload"] == before
        with pytest.raises(NotFoundError):
            mounted.local_path("nothing")
        assert control.faults.calls["VolumeReload"] == before + 1
        with mounted.stage("other"), pytest.raises(NotFoundError):
            mounted.manifest("nothing")
        assert control.faults.calls["VolumeReload"] == before + 3  # before the stage and its lease, none within

    def test_the_environment_says_where_it_is_mounted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Several Volumes may be named; another one is reached through the client."""
        monkeypatch.setenv("WANSTORE_MODAL_MOUNTS", f"other=/elsewhere:models={tmp_path}")
        assert ModalVolumeStore(URL).mount == tmp_path
        assert ModalVolumeStore("modal://third").mount is None

    def test_failing_commits_and_reloads_are_clear_errors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Open files that forbid a reload are named; a commit is tried again, then reported."""
        monkeypatch.setattr(modal_mount, "RETRY_DELAYS_SECONDS", (0.0,))
        store = MountedStore(URL, tmp_path / "mount", FailingVolume(), lease=None)
        with pytest.raises(NotFoundError, match="there are open files"):
            store.manifest("w")
        with pytest.raises(UnreachableError, match="lost"):
            put(store, "w")
        assert store.verify("w").ok

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting read-only needs root")
    def test_a_read_only_mount_says_so(self, store: ModalVolumeStore, client: Any, tmp_path: Path) -> None:
        """Reading goes on; writing is refused before any work."""
        (tmp_path / "ro").mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path / "ro")], check=False, capture_output=True
        ).returncode:
            pytest.skip("mounting is not allowed here")
        try:
            mounted = ModalVolumeStore(URL, mount=tmp_path / "ro", client=client)
            assert mounted.list() == Listing()
            with pytest.raises(AccessError, match="Mount the Volume without read_only"), mounted.stage("w"):
                pass
        finally:
            subprocess.run(["umount", "-l", str(tmp_path / "ro")], check=True)


class FailingVolume:
    """A Volume handle that can neither commit nor reload."""

    def commit(self) -> None:
        raise RuntimeError("the commit was lost")

    def reload(self) -> None:
        raise RuntimeError("there are open files preventing the operation")


class TestInAContainer:
    """What an environment without a mount can show of it."""

    def test_it_opens_from_mere_source_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sources that are added to an image have no metadata, so no entry points."""
        monkeypatch.setattr(_installed, "entry_points", lambda **_: EntryPoints())
        assert isinstance(wanstore.open_store("modal://models"), ModalVolumeStore)

    def test_containers_are_told_apart_and_a_retry_is_its_own_successor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the input that they are at, or else by the container: their host names are all alike."""
        assert current_holder("/models") == f"{platform.node()}:/models"
        monkeypatch.setenv("MODAL_IS_REMOTE", "1")
        monkeypatch.setenv("MODAL_TASK_ID", "ta-1")
        assert current_holder("/models") == "ta-1"
        monkeypatch.setattr("modal.current_input_id", lambda: "in-1")
        assert current_holder("/models") == "in-1"


class TestWithoutModal:
    """What is missing is said in one line."""

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The extra to install is named."""
        monkeypatch.setitem(sys.modules, "modal", None)
        with pytest.raises(NotSupportedError, match=r"pip install 'wanstore\[modal\]'"):
            ModalVolumeStore(URL)

    def test_without_credentials(self, control: ControlPlane, tmp_path: Path) -> None:
        """The command to log in by is named."""
        code = f"""
from wanstore.errors import AccessError
from wanstore.stores.modal import ModalVolumeStore
try:
    ModalVolumeStore({URL!r}).list()
except AccessError as error:
    print(error)
"""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_TOKEN")}
        environment["MODAL_CONFIG_PATH"] = str(tmp_path / "none.toml")
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert "modal setup" in run.stdout and len(run.stdout.splitlines()) == 1

    def test_the_module_is_imported_without_modal(self) -> None:
        """Entry points are loaded also where nobody uses Modal."""
        code = "import sys, wanstore.stores.modal._volume; print('modal' in sys.modules)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == "False"
