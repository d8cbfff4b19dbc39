"""What every store must do, as tests. A backend's author subclasses `WeightStoreTests` with one fixture:

    class TestMyStore(WeightStoreTests):
        @pytest.fixture
        def store(self, tmp_path): return MyStore(...)

The tests speak only through the interface, and damage files through `stored_folder`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wanstore.errors import (
    AlreadyExistsError,
    BusyError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    WanstoreError,
)
from wanstore.interfaces import Listing, Stage, WeightStore
from wanstore.manifest import Manifest
from wanstore.testing.manifests import manifest_of

FILES = {"model_index.json": b'{"_class_name": "WanPipeline"}', "vae/weights.safetensors": bytes(range(256)) * 64}


def fill(stage: Stage, files: dict[str, bytes] | None = None) -> None:
    """Write `files` (a small made-up pipeline by default) into a staging area."""
    for path, content in (FILES if files is None else files).items():
        (stage.path / path).parent.mkdir(parents=True, exist_ok=True)
        (stage.path / path).write_bytes(content)


def put(store: WeightStore, name: str, *, recipe: str = "recipe", replace: bool = False) -> Manifest:
    """Stage, fill and seal a pipeline."""
    with store.stage(name, replace=replace) as stage:
        fill(stage)
        manifest = manifest_of(stage.path, name, recipe)
        stage.seal(manifest)
    return manifest


class WeightStoreTests:
    """The behaviour suite; override the `store` fixture, and `stored_folder` if files are elsewhere."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> WeightStore:
        raise NotImplementedError("override the `store` fixture: an empty store")

    def stored_folder(self, store: WeightStore, name: str) -> Path:
        """Where the tests can damage the files of a sealed pipeline."""
        return store.local_path(name)

    def test_an_empty_store_lists_nothing(self, store: WeightStore) -> None:
        """A store that was never written to is empty, not an error."""
        assert store.list() == Listing()

    def test_a_sealed_pipeline_is_listed_with_its_manifest(self, store: WeightStore) -> None:
        """What was sealed comes back, from `list` and from `manifest`."""
        manifest = put(store, "w")
        assert store.list().pipelines == (manifest,)
        assert store.manifest("w") == manifest

    def test_pipelines_are_listed_by_name(self, store: WeightStore) -> None:
        """The order is that of the names, whenever each was stored."""
        put(store, "b")
        put(store, "a")
        assert [manifest.name for manifest in store.list().pipelines] == ["a", "b"]

    def test_the_local_path_holds_every_byte(self, store: WeightStore) -> None:
        """Readers get a plain folder."""
        put(store, "w")
        folder = store.local_path("w")
        assert {path: (folder / path).read_bytes() for path in FILES} == FILES

    def test_nothing_is_seen_before_the_seal(self, store: WeightStore) -> None:
        """A staging area is invisible, however full it is."""
        with store.stage("w") as stage:
            fill(stage)
            assert store.list() == Listing()
            with pytest.raises(NotFoundError):
                store.manifest("w")

    def test_leaving_the_stage_unsealed_discards_it(self, store: WeightStore) -> None:
        """The next staging area of that name starts empty."""
        with store.stage("w", resume="key") as stage:
            fill(stage)
        with store.stage("w", resume="key") as stage:
            assert not list(stage.path.iterdir())

    def test_an_error_discards_a_stage_that_cannot_be_resumed(self, store: WeightStore) -> None:
        """Without a resume key nothing is kept."""
        with pytest.raises(RuntimeError), store.stage("w") as stage:
            fill(stage)
            raise RuntimeError
        with store.stage("w") as stage:
            assert not list(stage.path.iterdir())

    def test_an_error_keeps_work_for_the_same_key_only(self, store: WeightStore) -> None:
        """The same resume key finds the files in place; another key starts clean."""
        for key, found in (("one", True), ("two", False)):
            with pytest.raises(RuntimeError), store.stage("w", resume="one") as stage:
                fill(stage)
                raise RuntimeError
            with store.stage("w", resume=key) as stage:
                assert bool(list(stage.path.iterdir())) is found
        assert store.list() == Listing()

    def test_a_name_that_is_taken_is_refused(self, store: WeightStore) -> None:
        """Without `replace`, a stored pipeline is never touched."""
        first = put(store, "w", recipe="first")
        with pytest.raises(AlreadyExistsError), store.stage("w"):
            pass
        assert store.manifest("w") == first

    def test_replace_swaps_the_whole_pipeline(self, store: WeightStore) -> None:
        """Until the seal readers see the old one, after it the new one, and no file of the old."""
        first = put(store, "w", recipe="first")
        with store.stage("w", replace=True) as stage:
            fill(stage, {"model_index.json": b"{}"})
            assert store.manifest("w") == first
            second = manifest_of(stage.path, "w", "second")
            stage.seal(second)
        assert store.list().pipelines == (second,)
        assert store.verify("w").ok

    def test_replace_of_nothing_stores(self, store: WeightStore) -> None:
        """`replace` does not need something to replace."""
        assert store.list() == Listing() and put(store, "w", replace=True) == store.manifest("w")

    def test_two_live_stages_of_one_name_end_in_one_whole_pipeline(self, store: WeightStore) -> None:
        """The second is refused when it begins, or when it seals."""
        with store.stage("w") as first:
            fill(first)
            with pytest.raises((BusyError, AlreadyExistsError)), store.stage("w") as second:
                fill(second)
                first.seal(manifest_of(first.path, "w"))
                second.seal(manifest_of(second.path, "w"))
            if not store.list().pipelines:
                first.seal(manifest_of(first.path, "w"))
        assert store.verify("w").ok

    def test_a_manifest_that_does_not_fit_the_files_is_not_sealed(self, store: WeightStore) -> None:
        """Sealing refuses a folder with a missing or longer file."""
        with pytest.raises(DamagedError), store.stage("w") as stage:
            fill(stage)
            manifest = manifest_of(stage.path, "w")
            (stage.path / "model_index.json").write_bytes(b"longer than it was said to be, by far")
            stage.seal(manifest)
        assert store.list() == Listing()

    def test_verify_passes_what_was_sealed(self, store: WeightStore) -> None:
        """A clean report counts every file and byte."""
        manifest = put(store, "w")
        report = store.verify("w")
        assert report.ok and (report.files, report.size_bytes) == (len(FILES), manifest.size_bytes)

    def test_verify_names_damaged_missing_and_extra_files(self, store: WeightStore) -> None:
        """One flipped bit, one lost file and one stray file are each reported."""
        with store.stage("w") as stage:
            fill(stage, {"a": b"aaaa", "b": b"bbbb", "c": b"cccc"})
            stage.seal(manifest_of(stage.path, "w"))
        folder = self.stored_folder(store, "w")
        (folder / "a").write_bytes(b"aaab")
        (folder / "b").unlink()
        (folder / "d").write_bytes(b"")
        report = store.verify("w")
        assert (report.damaged, report.missing, report.extra) == (("a",), ("b",), ("d",))

    def test_a_flipped_bit_in_the_manifest_is_noticed(self, store: WeightStore) -> None:
        """The manifest's own digest covers what no file hash does."""
        put(store, "w", recipe="recipe-1")
        path = self.stored_folder(store, "w") / "wanstore.json"
        path.write_bytes(path.read_bytes().replace(b"recipe-1", b"recipe-2"))
        with pytest.raises(DamagedError):
            store.verify("w")

    def test_delete_removes_it_and_frees_the_name(self, store: WeightStore) -> None:
        """After a delete the name is as if it had never been."""
        put(store, "w")
        store.delete("w")
        assert store.list() == Listing()
        put(store, "w")

    def test_a_missing_pipeline_is_not_found(self, store: WeightStore) -> None:
        """Every way to ask for it says so alike."""
        for ask in (store.manifest, store.local_path, store.verify, store.delete):
            with pytest.raises(NotFoundError):
                ask("nothing")

    @pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "/etc", "a\\b", "a\0b", "a" * 129])
    def test_names_that_could_escape_are_refused(self, store: WeightStore, name: str) -> None:
        """No separators, no dots first, not too long: for reading as for writing."""
        with pytest.raises(InvalidNameError), store.stage(name):
            pass
        with pytest.raises(WanstoreError):
            store.local_path(name)

    def test_sweeping_spares_what_is_sealed_and_what_is_live(self, store: WeightStore) -> None:
        """Only the leftovers of dead runs go."""
        put(store, "sealed")
        with store.stage("live") as stage:
            fill(stage)
            store.sweep()
            stage.seal(manifest_of(stage.path, "live"))
        assert [manifest.name for manifest in store.list().pipelines] == ["live", "sealed"]
        assert store.verify("live").ok
