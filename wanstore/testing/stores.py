"""What every store must do, as tests. A backend's author subclasses `WeightStoreTests` with one fixture:

    class TestMyStore(WeightStoreTests):
        @pytest.fixture
        def store(self, tmp_path): return MyStore(f"mine://{tmp_path}/store")

The tests speak only through the interface. What a store may do its own way is a method to override: `damage`, `opener`
and `stored_bytes`.

They ask the store to read and delete by names that lead out of it, to folders made for that. A store that obeys can
delete whatever its user may: run the suite as a user without privileges, and never as root.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import attrs
import pytest

from wanstore._files import files_below
from wanstore.errors import (
    AlreadyExistsError,
    BusyError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    WanstoreError,
)
from wanstore.interfaces import FileStage, Listing, Stage, WeightStore
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, dump_manifest, read_manifest
from wanstore.stores import open_store
from wanstore.testing.manifests import manifest_of, seal_as_is, with_unknown_key

FILES = {"model_index.json": b'{"_class_name": "WanPipeline"}', "vae/weights.safetensors": bytes(range(256)) * 64}


def fill(stage: Stage, files: dict[str, bytes] | None = None) -> None:
    """Write `files` (a small made-up pipeline by default) into a staging area."""
    for path, content in (FILES if files is None else files).items():
        overwrite(stage.path / path, content)


def overwrite(file: Path, data: bytes | None) -> None:
    """Write `data` to `file`, whatever is there; None removes it."""
    if data is None:
        file.unlink()
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def put(
    store: WeightStore,
    name: str,
    files: dict[str, bytes] | None = None,
    *,
    recipe: str = "recipe",
    replace: bool = False,
) -> Manifest:
    """Stage, fill and seal a pipeline."""
    with store.stage(name, replace=replace) as stage:
        fill(stage, files)
        manifest = manifest_of(stage.path, name, recipe)
        stage.seal(manifest)
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a pipeline folder, the manifest left out."""
    return {path: (folder / path).read_bytes() for path in files_below(folder) if path != MANIFEST_NAME}


class WeightStoreTests:
    """The behaviour suite. Override the `store` fixture, and what else is not as the store's own.

    Attributes:
        busy_seconds: how long a name may stay busy after the process that wrote it was killed: a lease's lifetime.
    """

    busy_seconds = 0.0

    @pytest.fixture
    def tmp_path(self, tmp_path: Path) -> Path:
        """A folder for the store so deep in pytest's that `../../x` still leads to a place of this test's own."""
        folder = tmp_path / "of" / "this" / "test"
        folder.mkdir(parents=True)
        return folder

    @pytest.fixture
    def store(self, tmp_path: Path) -> WeightStore:
        """An empty store that nothing else uses, best below `tmp_path`."""
        raise NotImplementedError("override the `store` fixture: an empty store")

    def opener(self, store: WeightStore) -> Callable[[], WeightStore]:
        """Opens `store` by its `url`. It is pickled, and called in another process too."""
        return partial(open_store, store.url)

    def damage(self, store: WeightStore, name: str, path: str, data: bytes | None) -> None:
        """Overwrite one file of a stored pipeline behind the store's back, or with None remove it.

        Override it if `local_path` is a copy.
        """
        overwrite(store.local_path(name) / path, data)

    def stored_bytes(self, store: WeightStore, tmp_path: Path) -> int:
        """How much space the store takes: by default whatever is below `tmp_path`."""
        return sum(status.st_size for status in files_below(tmp_path).values())

    # --- listing and reading

    def test_an_empty_store_lists_nothing(self, store: WeightStore) -> None:
        """A store that was never written to is empty, not an error."""
        assert store.list() == Listing()

    def test_a_sealed_pipeline_is_listed_with_its_manifest(self, store: WeightStore) -> None:
        """What was sealed comes back, from `list` and from `manifest`."""
        manifest = put(store, "w")
        assert store.list().pipelines == (manifest,)
        assert store.manifest("w") == manifest

    def test_the_manifest_keeps_notes_and_unknown_keys(self, store: WeightStore) -> None:
        """Every key of the document comes back, those of a later wanstore too."""
        with store.stage("w") as stage:
            fill(stage)
            manifest = with_unknown_key(manifest_of(stage.path, "w", notes={"attention": "xformers"}))
            stage.seal(manifest)
        for found in (store.manifest("w"), *store.list().pipelines, read_manifest(store.local_path("w"))):
            assert found and found.notes == {"attention": "xformers"}
            assert found.digest == manifest.digest and found.document == manifest.document

    def test_pipelines_are_listed_by_name(self, store: WeightStore) -> None:
        """The order is that of the names, whenever each was stored."""
        put(store, "b")
        put(store, "a")
        assert [manifest.name for manifest in store.list().pipelines] == ["a", "b"]

    def test_a_damaged_neighbour_is_listed_as_unreadable(self, store: WeightStore) -> None:
        """With the reason, and the others beside it."""
        good = put(store, "good")
        put(store, "bad")
        self.damage(store, "bad", MANIFEST_NAME, b"{")
        listing = store.list()
        assert listing.pipelines == (good,)
        assert [one.name for one in listing.unreadable] == ["bad"] and listing.unreadable[0].reason

    def test_the_local_path_holds_every_byte(self, store: WeightStore) -> None:
        """Readers get a plain folder, with its manifest."""
        manifest = put(store, "w")
        folder = store.local_path("w")
        assert contents(folder) == FILES and read_manifest(folder) == manifest

    def test_empty_and_long_files_are_stored_whole(self, store: WeightStore) -> None:
        """Whatever the size of a store's blocks is."""
        files = {"empty": b"", "long": bytes(range(256)) * (36 << 10) + b"end", "zeros": bytes(5 << 20)}
        put(store, "w", files)
        assert contents(store.local_path("w")) == files and store.verify("w").ok

    def test_files_are_read_one_by_one(self, store: WeightStore) -> None:
        """Several at once, each in order, whatever the size of a block is."""
        files = {"empty": b"", "long": bytes(range(256)) * (36 << 10) + b"end", "vae/weights": b"w"}
        put(store, "w", files)
        read = store.reader("w")
        with ThreadPoolExecutor(len(files)) as pool:
            assert list(pool.map(lambda path: _joined(read(path)), files)) == list(files.values())

    def test_the_url_opens_the_same_store(self, store: WeightStore) -> None:
        """Whoever has the address has what is stored."""
        manifest = put(store, "w")
        again = self.opener(store)()
        assert again.url == store.url and again.list().pipelines == (manifest,)

    def test_a_missing_pipeline_is_not_found(self, store: WeightStore) -> None:
        """Every way to ask for it says so alike."""
        for ask in (store.manifest, store.local_path, store.reader, store.verify, store.delete):
            with pytest.raises(NotFoundError):
                ask("nothing")

    @pytest.mark.parametrize("ask", ["manifest", "local_path", "reader", "verify", "delete", "stage"])
    def test_names_that_could_escape_are_refused(self, store: WeightStore, tmp_path: Path, ask: str) -> None:
        """No separators, no dots first, not too long: whatever is asked. What the names lead to stays."""
        canary = f"canary-{uuid.uuid4().hex}"
        canaries = [place / canary for place in (tmp_path, *tmp_path.parents[:2])]
        for folder in canaries:
            (folder / "vae").mkdir(parents=True)
            seal_as_is(folder)
        put(store, "w")
        names = [
            str(tmp_path / canary), f"../{canary}", f"../../{canary}", f"w/../../{canary}", f"./{canary}",
            "w/", "w/vae", "", ".", ".hidden", "a\\b", "a\0b", "w\n", "a" * 129,
        ]  # fmt: skip
        if ask not in ("delete", "stage"):  # wherever the store is, a look does no harm
            names += ["..", "../.."]
        obeyed = []
        for name in names:
            try:
                if ask == "stage":
                    with store.stage(name):
                        pass
                else:
                    getattr(store, ask)(name)
            except InvalidNameError:
                continue
            except (WanstoreError, OSError, ValueError) as error:
                obeyed.append(f"{name!r}: {error!r}")
            else:
                obeyed.append(repr(name))
        assert not obeyed, "these names must be InvalidNameError"
        assert all((folder / MANIFEST_NAME).is_file() for folder in canaries) and store.verify("w").ok

    # --- staging

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

    def test_discarded_work_is_gone(self, store: WeightStore) -> None:
        """Also when an error follows, and the same key comes again: it was unfit to resume."""
        with pytest.raises(RuntimeError), store.stage("w", resume="key") as stage:
            fill(stage)
            (stage.scratch / "journal").write_bytes(b"...")
            stage.discard()
            raise RuntimeError
        with store.stage("w", resume="key") as stage:
            assert not list(stage.path.iterdir()) and not list(stage.scratch.iterdir())

    def test_scratch_lasts_as_long_as_the_work(self, store: WeightStore) -> None:
        """It is kept with the work, it is no part of the pipeline, and it ends with the seal."""
        with pytest.raises(RuntimeError), store.stage("w", resume="key") as stage:
            (stage.scratch / "journal").write_bytes(b"...")
            raise RuntimeError
        with store.stage("w", resume="key") as stage:
            assert (stage.scratch / "journal").read_bytes() == b"..."
            fill(stage)
            stage.seal(manifest_of(stage.path, "w"))
        assert contents(store.local_path("w")) == FILES
        assert not (stage.scratch / "journal").exists()
        with store.stage("w", replace=True, resume="key") as stage:
            assert not list(stage.path.iterdir()) and not list(stage.scratch.iterdir())

    def test_a_stage_takes_files_one_by_one(self, store: WeightStore) -> None:
        """Beside those in its folder, if it does at all. Blocks are copied: they are overwritten."""
        files = {"a": b"".join(bytes([n]) * 1000 for n in range(20)), "vae/b": b"b", "empty": b""}
        with store.stage("w") as stage:
            takes = _file_stage(stage)
            fill(stage)
            manifest = _with_files(manifest_of(stage.path, "w"), files)
            with ThreadPoolExecutor(len(files)) as pool:
                list(pool.map(lambda path: takes.write(entry_of(path, files), lambda: _blocks(files[path])), files))
            stage.seal(manifest)
        assert contents(store.local_path("w")) == FILES | files and store.verify("w").ok

    def test_a_file_is_kept_for_a_run_that_resumes_by_its_hash(self, store: WeightStore) -> None:
        """A file of another content or size is not it, and other work has none."""
        one, other, longer = (entry_of("a", {"a": data}) for data in (b"one", b"two", b"longer"))
        with pytest.raises(RuntimeError), store.stage("w", resume="key") as stage:
            takes = _file_stage(stage)
            assert not takes.holds(one)
            takes.write(one, lambda: _blocks(b"one"))
            raise RuntimeError
        with pytest.raises(RuntimeError), store.stage("w", resume="key") as stage:
            takes = _file_stage(stage)
            assert [takes.holds(entry) for entry in (one, other, longer)] == [True, False, False]
            raise RuntimeError
        with store.stage("w", resume="another key") as stage:
            assert not _file_stage(stage).holds(one)

    def test_a_file_whose_blocks_fail_is_not_kept(self, store: WeightStore) -> None:
        """The error is passed on. What failed is not held, and a pipeline without it is not sealed."""
        files = {"a": bytes(20_000)}
        with pytest.raises(DamagedError, match="does not hold"), store.stage("w", resume="key") as stage:
            takes, entry = _file_stage(stage), entry_of("a", files)
            with pytest.raises(DamagedError, match="it broke off"):
                takes.write(entry, lambda: _broken(files["a"]))
            assert not takes.holds(entry)
            stage.seal(_with_files(manifest_of(stage.path, "w"), files))
        assert store.list() == Listing()

    def test_a_name_that_is_taken_is_refused(self, store: WeightStore) -> None:
        """Without `replace`, a stored pipeline is never touched."""
        first = put(store, "w", recipe="first")
        with pytest.raises(AlreadyExistsError), store.stage("w"):
            pass
        assert store.manifest("w") == first

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
            _seal_what_does_not_fit(stage)
        assert store.list() == Listing()

    def test_a_reader_sees_all_of_a_pipeline_or_nothing(self, store: WeightStore) -> None:
        """At whatever moment of a seal, the first or one that replaces, the manifest's files are there."""
        torn: list[str] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set() and not torn:
                torn.extend(_torn_files(store, "w"))

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            try:
                for size in (1, 20, 3, 40):
                    put(store, "w", {f"{n}.bin": bytes(size) for n in range(24)}, recipe=f"{size}", replace=size > 1)
            finally:
                done.set()
            reading.result()
        assert not torn, "files that a reader found short or missing"

    # --- other processes

    def test_another_process_may_not_stage_the_same_name(self, store: WeightStore) -> None:
        """`BusyError` while it runs; other names are free, and a sweep leaves its work alone."""
        with _live_stage(self.opener(store), "w") as stage:
            with pytest.raises(BusyError), store.stage("w", resume="key"):
                pass
            put(store, "another")
            store.sweep()
            assert contents(stage) == FILES

    def test_work_of_a_killed_process_is_found_by_its_key(self, store: WeightStore) -> None:
        """And its name is free again."""
        with _live_stage(self.opener(store), "w"):
            pass
        deadline = time.monotonic() + self.busy_seconds
        while True:
            try:
                with store.stage("w", resume="key") as stage:
                    assert contents(stage.path) == FILES
                    stage.seal(manifest_of(stage.path, "w"))
                break
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        assert store.verify("w").ok

    # --- replacing

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

    def test_the_local_path_follows_a_replacement(self, store: WeightStore) -> None:
        """A copy of the old one, kept from an earlier look, is not the pipeline any more."""
        put(store, "w", recipe="first")
        store.local_path("w")
        put(store, "w", {"model_index.json": b"{}"}, recipe="second", replace=True)
        assert contents(store.local_path("w")) == {"model_index.json": b"{}"}

    def test_a_failed_replacement_leaves_the_old_pipeline(self, store: WeightStore) -> None:
        """An error in the block has not begun to replace."""
        first = put(store, "w", recipe="first")
        with pytest.raises(RuntimeError), store.stage("w", replace=True) as stage:
            fill(stage, {"model_index.json": b"{}"})
            raise RuntimeError
        assert store.manifest("w") == first and store.verify("w").ok

    def test_a_refused_seal_leaves_the_old_pipeline(self, store: WeightStore) -> None:
        """What cannot be published replaces nothing."""
        first = put(store, "w", recipe="first")
        with pytest.raises(DamagedError), store.stage("w", replace=True) as stage:
            _seal_what_does_not_fit(stage)
        assert store.manifest("w") == first and store.verify("w").ok

    # --- verifying

    def test_verify_passes_what_was_sealed(self, store: WeightStore) -> None:
        """A clean report counts every file and byte."""
        manifest = put(store, "w")
        report = store.verify("w")
        assert report.ok and (report.files, report.size_bytes) == (len(FILES), manifest.size_bytes)

    def test_verify_names_damaged_missing_and_extra_files(self, store: WeightStore) -> None:
        """One flipped bit, one lost file and one stray file are each reported."""
        put(store, "w", {"a": b"aaaa", "b": b"bbbb", "c": b"cccc"})
        for path, data in (("a", b"aaab"), ("b", None), ("d", b"")):
            self.damage(store, "w", path, data)
        report = store.verify("w")
        assert (report.damaged, report.missing, report.extra) == (("a",), ("b",), ("d",))

    def test_a_flipped_bit_in_the_manifest_is_noticed(self, store: WeightStore) -> None:
        """The manifest's own digest covers what no file hash does."""
        manifest = put(store, "w", recipe="recipe-1")
        self.damage(store, "w", MANIFEST_NAME, dump_manifest(manifest).replace(b"recipe-1", b"recipe-2"))
        for ask in (store.verify, store.manifest):
            with pytest.raises(DamagedError):
                ask("w")

    # --- deleting and sweeping

    def test_delete_removes_it_and_frees_the_name(self, store: WeightStore) -> None:
        """After a delete the name is as if it had never been, also to who has read it before."""
        put(store, "w")
        store.local_path("w")
        store.delete("w")
        assert store.list() == Listing()
        for ask in (store.manifest, store.local_path, store.verify, store.delete):
            with pytest.raises(NotFoundError):
                ask("w")
        put(store, "w", {"model_index.json": b"{}"})
        assert contents(store.local_path("w")) == {"model_index.json": b"{}"} and store.verify("w").ok

    def test_delete_frees_the_space(self, store: WeightStore, tmp_path: Path) -> None:
        """Its files are gone, at the latest after a sweep."""
        before = self.stored_bytes(store, tmp_path)
        put(store, "w", {"weights": uuid.uuid4().bytes * (64 << 10)})
        if self.stored_bytes(store, tmp_path) == before:
            pytest.skip("the store keeps nothing below tmp_path: override `stored_bytes`")
        store.delete("w")
        store.sweep()
        assert self.stored_bytes(store, tmp_path) - before < 64 << 10

    def test_delete_needs_no_readable_manifest(self, store: WeightStore) -> None:
        """A damaged pipeline is what has to go."""
        put(store, "w")
        self.damage(store, "w", MANIFEST_NAME, b"{")
        store.delete("w")
        assert store.list() == Listing() and put(store, "w") == store.manifest("w")

    def test_sweeping_spares_what_is_sealed_and_what_is_live(self, store: WeightStore) -> None:
        """Only the leftovers of dead runs go."""
        put(store, "sealed")
        with store.stage("live") as stage:
            fill(stage)
            store.sweep()
            stage.seal(manifest_of(stage.path, "live"))
        assert [manifest.name for manifest in store.list().pipelines] == ["live", "sealed"]
        assert store.verify("live").ok


def entry_of(path: str, files: dict[str, bytes]) -> FileEntry:
    """What a manifest says about one of `files`."""
    return FileEntry(path, len(files[path]), hashlib.sha256(files[path]).hexdigest())


def _with_files(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    return attrs.evolve(manifest, files=(*manifest.files, *(entry_of(path, files) for path in files)))


def _file_stage(stage: Stage) -> FileStage:
    if not isinstance(stage, FileStage):
        pytest.skip("its stages take no files one by one, and need not")
    return stage


def _blocks(data: bytes) -> Iterator[memoryview]:
    """In one buffer, as they may come."""
    buffer = bytearray(1000)
    for start in range(0, len(data), len(buffer)):
        piece = data[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]


def _broken(data: bytes) -> Iterator[memoryview]:
    yield from _blocks(data)
    raise DamagedError("it broke off")


def _joined(blocks: Iterator[bytes | memoryview]) -> bytes:
    return b"".join(map(bytes, blocks))


def _seal_what_does_not_fit(stage: Stage) -> None:
    fill(stage)
    manifest = manifest_of(stage.path, "w", "unfit")
    overwrite(stage.path / "model_index.json", b"longer than it was said to be, by far")
    stage.seal(manifest)


def _torn_files(store: WeightStore, name: str) -> list[str]:
    """Files that are not what the manifest beside them says, where that was the same before and after the look."""
    if not store.list().pipelines:
        return []
    try:
        folder = store.local_path(name)
    except NotFoundError:
        return []
    before = read_manifest(folder)
    if before is None:
        return []
    found = {path: status.st_size for path, status in files_below(folder).items()}
    wrong = [entry.path for entry in before.files if found.get(entry.path) != entry.size_bytes]
    after = read_manifest(folder) if wrong else None
    return wrong if after and after.digest == before.digest else []


@contextmanager
def _live_stage(opener: Callable[[], WeightStore], name: str) -> Iterator[Path]:
    """The folder that another process is staging, by the resume key "key", until it is killed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_stage_and_wait, args=(opener, name, sender), daemon=True)
    process.start()
    try:
        while not receiver.poll(0.1):
            assert process.is_alive(), "the other process could not stage: see its traceback"
        yield Path(receiver.recv())
    finally:
        process.kill()
        process.join()


def _stage_and_wait(opener: Callable[[], WeightStore], name: str, sender: Connection) -> None:
    with opener().stage(name, resume="key") as stage:
        fill(stage)
        sender.send(str(stage.path))
        time.sleep(600)
