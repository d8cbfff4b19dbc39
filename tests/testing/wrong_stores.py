"""Stores that are wrong in one way each, and the test of `WeightStoreTests` that must say so.

Some delete or write whatever they are asked to: only `suites_of_wrong_ones` runs them, without privileges.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import ClassVar

import attrs

from wanstore._files import files_below, hash_file
from wanstore.errors import BusyError, NotFoundError, WanstoreError
from wanstore.interfaces import Listing, Progress, Stage, VerifyReport
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, dump_manifest, parse_manifest, read_manifest
from wanstore.stores._folder import verify_folder
from wanstore.stores.local import LocalStore

ESCAPES = "test_names_that_could_escape_are_refused"
READER = "test_a_reader_sees_all_of_a_pipeline_or_nothing"
SCRATCH = "test_scratch_lasts_as_long_as_the_work"


@attrs.define
class PlainStage:
    """A stage as it should be; wrong ones change a method."""

    inner: Stage
    store: LocalStore
    target: Path

    @property
    def path(self) -> Path:
        return self.inner.path

    @property
    def scratch(self) -> Path:
        return self.inner.scratch

    def seal(self, manifest: Manifest) -> None:
        self.inner.seal(manifest)

    def discard(self) -> None:
        self.inner.discard()


class WrongStore(LocalStore):
    """Right, but for what a subclass changes; `caught_by` is the test that must fail."""

    caught_by: ClassVar[str]
    stage_class: ClassVar[type[PlainStage]] = PlainStage

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace, resume=resume) as inner:
            yield self.stage_class(inner, self, self.root / name)


# --- listing and reading


class ReadsTheFirstBlock(WrongStore):
    """`reader` gives one block of each file."""

    caught_by = "test_files_are_read_one_by_one"

    def reader(self, name: str) -> Callable[[str], Iterator[bytes | memoryview]]:
        read = super().reader(name)
        return lambda path: islice(read(path), 1)


class ReadsWhatIsMissing(WrongStore):
    """`reader` finds out when a file is read that there is no pipeline."""

    caught_by = "test_a_missing_pipeline_is_not_found"

    def reader(self, name: str) -> Callable[[str], Iterator[bytes | memoryview]]:
        return lambda path: super(ReadsWhatIsMissing, self).reader(name)(path)


class ListsUnsorted(WrongStore):
    """The newest comes first."""

    caught_by = "test_pipelines_are_listed_by_name"

    def list(self) -> Listing:
        return attrs.evolve(super().list(), pipelines=super().list().pipelines[::-1])


class ListRaises(WrongStore):
    """One damaged manifest, and nothing is listed."""

    caught_by = "test_a_damaged_neighbour_is_listed_as_unreadable"

    def list(self) -> Listing:
        for one in super().list().unreadable:
            self.manifest(one.name)
        return super().list()


class ListHides(WrongStore):
    """A damaged manifest is left out silently."""

    caught_by = "test_a_damaged_neighbour_is_listed_as_unreadable"

    def list(self) -> Listing:
        return attrs.evolve(super().list(), unreadable=())


class UrlLeadsElsewhere(WrongStore):
    """The address is that of another folder."""

    caught_by = "test_the_url_opens_the_same_store"

    @property
    def url(self) -> str:
        return self.root.parent.as_uri()


class MissingIsEmpty(WrongStore):
    """What is not there has a path all the same."""

    caught_by = "test_a_missing_pipeline_is_not_found"

    def local_path(self, name: str) -> Path:
        with suppress(NotFoundError):
            return super().local_path(name)
        return self.root / name


class CopiesOnce(WrongStore):
    """`local_path` keeps the first copy of a name for good, whatever becomes of the pipeline."""

    caught_by = "test_the_local_path_follows_a_replacement"

    def local_path(self, name: str) -> Path:
        copy = self.root.parent / "copies" / name
        if not copy.exists():
            shutil.copytree(super().local_path(name), copy)
        return copy


class ServesTheDeleted(WrongStore):
    """`local_path` copies again after a replacement, but not after a delete."""

    caught_by = "test_delete_removes_it_and_frees_the_name"

    def local_path(self, name: str) -> Path:
        copy = self.root.parent / "copies" / name
        with suppress(NotFoundError):
            folder = super().local_path(name)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
        if not copy.exists():
            raise self._missing(name)
        return copy


class UncheckedManifest(WrongStore):
    """`manifest` reads wherever the name leads."""

    caught_by = f"{ESCAPES}[manifest]"

    def manifest(self, name: str) -> Manifest:
        found = read_manifest(self.root / name)
        if found is None:
            raise self._missing(name)
        return found


class UncheckedLocalPath(WrongStore):
    """`local_path` gives wherever the name leads."""

    caught_by = f"{ESCAPES}[local_path]"

    def local_path(self, name: str) -> Path:
        if not (self.root / name / MANIFEST_NAME).exists():
            raise self._missing(name)
        return self.root / name


class UncheckedVerify(WrongStore):
    """`verify` hashes wherever the name leads."""

    caught_by = f"{ESCAPES}[verify]"

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        found = read_manifest(self.root / name)
        if found is None:
            raise self._missing(name)
        return verify_folder(self.root / name, found, progress)


class UncheckedDelete(WrongStore):
    """`delete` deletes wherever the name leads."""

    caught_by = f"{ESCAPES}[delete]"

    def delete(self, name: str) -> None:
        if not (self.root / name / MANIFEST_NAME).exists():
            raise self._missing(name)
        shutil.rmtree(self.root / name)


class UncheckedStage(WrongStore):
    """`stage` writes wherever the name leads."""

    caught_by = f"{ESCAPES}[stage]"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage("x", replace=replace, resume=resume) as inner:
            yield self.stage_class(inner, self, self.root / name)


# --- staging


class ShowsStages(WrongStore):
    """What is staged is listed already."""

    caught_by = "test_nothing_is_seen_before_the_seal"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace, resume=resume) as stage:
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name / MANIFEST_NAME).write_text("{")
            yield stage
            shutil.rmtree(self.root / name)


class _KeepsAll(PlainStage):
    def discard(self) -> None:
        """Nothing is removed."""


class _Takes(PlainStage):
    """A right `FileStage`."""

    def holds(self, entry: FileEntry) -> bool:
        path = self.path / entry.path
        return path.is_file() and hash_file(path) == entry.sha256

    def write(self, entry: FileEntry, blocks: Callable[[], Iterator[bytes | memoryview]]) -> None:
        self.keep(entry, b"".join(map(bytes, blocks())))

    def keep(self, entry: FileEntry, data: bytes) -> None:
        (self.path / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / entry.path).write_bytes(data)


class _KeepsBlocks(_Takes):
    def write(self, entry: FileEntry, blocks: Callable[[], Iterator[bytes | memoryview]]) -> None:
        self.keep(entry, b"".join(list(blocks())))


class KeepsBlocksThatAreOverwritten(WrongStore):
    """A file is made of blocks that hold something else by then."""

    caught_by = "test_a_stage_takes_files_one_by_one"
    stage_class = _KeepsBlocks


class _HoldsByName(_Takes):
    def holds(self, entry: FileEntry) -> bool:
        return (self.path / entry.path).is_file()


class HoldsByName(WrongStore):
    """A file of that name is taken for the right one."""

    caught_by = "test_a_file_is_kept_for_a_run_that_resumes_by_its_hash"
    stage_class = _HoldsByName


class _KeepsWhatFailed(_Takes):
    def write(self, entry: FileEntry, blocks: Callable[[], Iterator[bytes | memoryview]]) -> None:
        data = b""
        try:
            for block in blocks():
                data += block
        finally:
            self.keep(entry, data)


class KeepsWhatFailed(WrongStore):
    """A file whose blocks raise is kept all the same."""

    caught_by = "test_a_file_whose_blocks_fail_is_not_kept"
    stage_class = _KeepsWhatFailed


class DiscardsNothing(WrongStore):
    """`discard` does nothing, so that unfit work is resumed."""

    caught_by = "test_discarded_work_is_gone"
    stage_class = _KeepsAll


class KeepsTheUnsealed(WrongStore):
    """A block that is left in peace is kept like one that failed."""

    caught_by = "test_leaving_the_stage_unsealed_discards_it"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with suppress(KeyboardInterrupt), super().stage(name, replace=replace, resume=resume) as stage:
            yield stage
            raise KeyboardInterrupt


class ResumesWithoutKey(WrongStore):
    """Work is kept though nobody asked for it."""

    caught_by = "test_an_error_discards_a_stage_that_cannot_be_resumed"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace, resume=resume or "any") as stage:
            yield stage


class IgnoresTheKey(WrongStore):
    """Whoever comes next takes up the work, of whatever recipe it is."""

    caught_by = "test_an_error_keeps_work_for_the_same_key_only"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace, resume=resume and "key") as stage:
            yield stage


class ResumesNothing(WrongStore):
    """The key is taken and forgotten."""

    caught_by = "test_an_error_keeps_work_for_the_same_key_only"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace) as stage:
            yield stage


class LosesTheWorkOfTheDead(WrongStore):
    """Work is marked as resumable when an error leaves the block: a killed process leaves no block."""

    caught_by = "test_work_of_a_killed_process_is_found_by_its_key"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace, resume=resume) as stage:
            key = stage.path.parent / "key"
            key.unlink(missing_ok=True)
            try:
                yield stage
            except BaseException:
                key.write_text(resume or "")
                raise


class _ScratchInside(PlainStage):
    @property
    def scratch(self) -> Path:
        (self.path / "scratch").mkdir(exist_ok=True)
        return self.path / "scratch"


class PublishesScratch(WrongStore):
    """`scratch` lies in the pipeline folder."""

    caught_by = SCRATCH
    stage_class = _ScratchInside


class _ScratchOfItsOwn(PlainStage):
    @property
    def scratch(self) -> Path:
        folder = self.store.root.parent / f"scratch-{self.target.name}"
        folder.mkdir(exist_ok=True)
        return folder


class KeepsScratch(WrongStore):
    """`scratch` is still there after the seal, for the next to find."""

    caught_by = SCRATCH
    stage_class = _ScratchOfItsOwn


class LosesScratch(WrongStore):
    """`scratch` is not kept with the work."""

    caught_by = SCRATCH

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=replace, resume=resume) as stage:
            shutil.rmtree(stage.scratch)
            stage.scratch.mkdir()
            yield stage


class OverwritesTheTaken(WrongStore):
    """Every stage may replace."""

    caught_by = "test_a_name_that_is_taken_is_refused"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with super().stage(name, replace=True, resume=resume) as stage:
            yield stage


class LocksOneProcess(WrongStore):
    """The lock is a variable."""

    caught_by = "test_another_process_may_not_stage_the_same_name"
    held: ClassVar[set[Path]] = set()

    @contextmanager
    def _lock(self, name: str, wait_seconds: float = 0.0) -> Iterator[None]:
        if self.root / name in self.held:
            raise BusyError(f"{name!r} is being written")
        self.held.add(self.root / name)
        try:
            yield
        finally:
            self.held.discard(self.root / name)


class LocksNothing(WrongStore):
    """Two writers of one name fill the same folder."""

    caught_by = "test_two_live_stages_of_one_name_end_in_one_whole_pipeline"

    @contextmanager
    def _lock(self, name: str, wait_seconds: float = 0.0) -> Iterator[None]:
        (self._own / "locks").mkdir(parents=True, exist_ok=True)
        yield


# --- sealing


class _Forgetful(PlainStage):
    def seal(self, manifest: Manifest) -> None:
        self.inner.seal(attrs.evolve(manifest, notes={}))


class ForgetsNotes(WrongStore):
    """The notes are left out of what is stored."""

    caught_by = "test_the_manifest_keeps_notes_and_unknown_keys"
    stage_class = _Forgetful


class _Narrow(PlainStage):
    def seal(self, manifest: Manifest) -> None:
        self.inner.seal(attrs.evolve(manifest))


class ForgetsUnknownKeys(WrongStore):
    """Only the keys of this version are stored."""

    caught_by = "test_the_manifest_keeps_notes_and_unknown_keys"
    stage_class = _Narrow


class _Changing(PlainStage):
    """Changes a stored file once it is sealed."""

    def changed(self, data: bytes) -> bytes | None:
        return data

    def seal(self, manifest: Manifest) -> None:
        self.inner.seal(manifest)
        for path in files_below(self.target):
            data = self.changed((self.target / path).read_bytes())
            (self.target / path).unlink() if data is None else (self.target / path).write_bytes(data)


class _NoEmpty(_Changing):
    def changed(self, data: bytes) -> bytes | None:
        return data or None


class DropsEmptyFiles(WrongStore):
    """A file of no bytes is no object."""

    caught_by = "test_empty_and_long_files_are_stored_whole"
    stage_class = _NoEmpty


class _OneBlock(_Changing):
    def changed(self, data: bytes) -> bytes | None:
        return data[: 8 << 20]


class CutsLongFiles(WrongStore):
    """The last block of a long file is lost."""

    caught_by = "test_empty_and_long_files_are_stored_whole"
    stage_class = _OneBlock


class _Unchecked(PlainStage):
    def seal(self, manifest: Manifest) -> None:
        shutil.rmtree(self.target, ignore_errors=True)
        (self.path / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
        self.path.rename(self.target)


class SealsWhateverIsThere(WrongStore):
    """The files are not compared with the manifest."""

    caught_by = "test_a_manifest_that_does_not_fit_the_files_is_not_sealed"
    stage_class = _Unchecked


class _FileByFile(PlainStage):
    first: ClassVar[str] = ""

    def seal(self, manifest: Manifest) -> None:
        (self.path / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
        for path in sorted(files_below(self.path), key=lambda path: path != self.first):
            (self.target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.path / path, self.target / path)


class _ManifestFirst(_FileByFile):
    first = MANIFEST_NAME


class SealsFileByFile(WrongStore):
    """Files take the place of the old ones, one by one."""

    caught_by = READER
    stage_class = _FileByFile


class PublishesTheManifestFirst(WrongStore):
    """The pipeline is announced before its files are there."""

    caught_by = READER
    stage_class = _ManifestFirst


class ReplacementMixes(WrongStore):
    """Files of the old pipeline that the new one lacks stay."""

    caught_by = "test_replace_swaps_the_whole_pipeline"
    stage_class = _FileByFile


class ReplacesBeforeTheBlock(WrongStore):
    """The old pipeline is deleted to make room for the new."""

    caught_by = "test_a_failed_replacement_leaves_the_old_pipeline"

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with suppress(WanstoreError):
            if replace:
                self.delete(name)
        with super().stage(name, replace=replace, resume=resume) as stage:
            yield stage


class _DeletesFirst(PlainStage):
    def seal(self, manifest: Manifest) -> None:
        with suppress(NotFoundError):
            self.store.delete(self.target.name)
        self.inner.seal(manifest)


class ReplacesBeforeTheCheck(WrongStore):
    """The old pipeline is deleted before the new one is known to be publishable."""

    caught_by = "test_a_refused_seal_leaves_the_old_pipeline"
    stage_class = _DeletesFirst


# --- verifying, deleting and sweeping


class VerifiesSizes(WrongStore):
    """A flipped bit changes no size."""

    caught_by = "test_verify_names_damaged_missing_and_extra_files"

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        sizes = {entry.path: entry.size_bytes for entry in self.manifest(name).files}
        report = super().verify(name, progress=progress)
        kept = [path for path in report.damaged if (self.root / name / path).stat().st_size != sizes[path]]
        return attrs.evolve(report, damaged=tuple(kept))


class VerifiesNoStrays(WrongStore):
    """Only what the manifest lists is looked at."""

    caught_by = "test_verify_names_damaged_missing_and_extra_files"

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        return attrs.evolve(super().verify(name, progress=progress), extra=())


class TrustsTheManifest(WrongStore):
    """A manifest that was altered is signed anew."""

    caught_by = "test_a_flipped_bit_in_the_manifest_is_noticed"

    def manifest(self, name: str) -> Manifest:
        self._sign(self.local_path(name) / MANIFEST_NAME)
        return super().manifest(name)

    def _sign(self, path: Path) -> None:
        with suppress(WanstoreError):
            parse_manifest(path.read_bytes(), "", "w")
            return
        path.write_bytes(path.read_bytes().replace(b"recipe-2", b"recipe-1"))


class DeletesTheManifest(WrongStore):
    """Its files stay in place, and so in the way."""

    caught_by = "test_delete_removes_it_and_frees_the_name"

    def delete(self, name: str) -> None:
        (self.local_path(name) / MANIFEST_NAME).unlink()


class DeleteKeepsTheFiles(WrongStore):
    """They are out of sight, and never removed."""

    caught_by = "test_delete_frees_the_space"

    def delete(self, name: str) -> None:
        self.local_path(name).rename(self.root / f"gone-{time.time_ns()}")
        next(self.root.glob("gone-*"), self.root).joinpath(MANIFEST_NAME).unlink()


class DeleteAsksTheManifest(WrongStore):
    """What is damaged can't be deleted."""

    caught_by = "test_delete_needs_no_readable_manifest"

    def delete(self, name: str) -> None:
        self.manifest(name)
        super().delete(name)


class SweepsTheLive(WrongStore):
    """A sweep takes what is being written."""

    caught_by = "test_sweeping_spares_what_is_sealed_and_what_is_live"

    def sweep(self) -> None:
        shutil.rmtree(self.root / ".wanstore" / "stages", ignore_errors=True)


WRONG = [one for one in list(globals().values()) if isinstance(one, type) and hasattr(one, "caught_by")]
