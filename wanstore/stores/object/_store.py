"""A store in a bucket: `s3://BUCKET[/prefix]`, `gs://BUCKET[/prefix]`, `az://CONTAINER[/prefix]`.

    PREFIX/NAME/sealed.json        says which folder is the pipeline
    PREFIX/NAME/files-ID/...       a sealed pipeline folder, as on a disk, its wanstore.json included

Objects appear whole, but one at a time, and cannot be renamed. So each upload has a folder of its own, whose ID nobody
else has, and `sealed.json` is written last, on the condition that it still is what it was when the upload began: of two
writers one wins, and a reader finds a whole folder. Who has replaced or deleted a pipeline then deletes the folder that
it was: no other names it. Nothing else below NAME is touched.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wanstore.errors import AlreadyExistsError, ChangedError, DamagedError, InvalidNameError, NotFoundError
from wanstore.interfaces import Listing, Progress, Quiet, Stage, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_MAX_BYTES, MANIFEST_NAME, Manifest, parse_manifest
from wanstore.stores._folder import list_named, verify_files
from wanstore.stores._names import check_name
from wanstore.stores._streamed import StreamedPipeline, streamed
from wanstore.stores._transfers import FILES_AT_ONCE, Advance, Blocks
from wanstore.stores.cache._download import download
from wanstore.stores.cache._uses import cache_folder
from wanstore.stores.local import LocalStore
from wanstore.stores.object._bucket import Bucket, Note
from wanstore.stores.object._upload import ABANDONED_AFTER, FOLDER, SEAL_MAX_BYTES, Upload, clean_up, folder_in, seal_of

_REPAIR = "Run setup again with --replace"


class ObjectStore(WeightStore):
    """Pipelines below a bucket's `url`. `progress` receives of uploads and downloads.

    Credentials come from the environment, as the service's own tools take them from there.
    """

    def __init__(self, url: str, *, progress: Progress | None = None) -> None:
        self._url = url.rstrip("/")
        self._bucket = Bucket(self._url)
        self._cache = cache_folder() / "object" / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self._staging = LocalStore(self._cache / "staging")
        self.progress = progress or Quiet()

    @property
    def url(self) -> str:
        return self._url

    def list(self) -> Listing:
        return list_named(
            self._bucket.folders(""), self.manifest, lambda name: self._bucket.read(seal_of(name), SEAL_MAX_BYTES)
        )

    def manifest(self, name: str) -> Manifest:
        return self._sealed(name)[1]

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        before = self._read_seal(check_name(name))
        if before and not replace:
            raise AlreadyExistsError(
                f"{self._url} already holds {name!r}", "Choose another name, or replace it with --replace"
            )
        self._drop_abandoned(name, before)
        with self._staging.stage(name, resume=resume) as inner:
            yield Upload(self._bucket, name, inner, before, self.progress)

    def local_path(self, name: str) -> Path:
        while True:
            folder, manifest = self._sealed(name)
            try:
                return download(self._reader_in(folder), self._url, manifest, self._cache, self.progress)
            except DamagedError:
                if self._sealed(name)[0] == folder:  # else it was replaced while it came down
                    raise

    def reader(self, name: str) -> Callable[[str], Blocks]:
        return self._reader_in(self._sealed(name)[0])

    def _reader_in(self, folder: str) -> Callable[[str], Blocks]:
        return lambda path: self._bucket.blocks(f"{folder}/{path}")

    @contextmanager
    def streamed(self, name: str) -> Iterator[StreamedPipeline]:
        folder, manifest = self._sealed(name)
        address = f"{self._url}/{name}"
        try:
            with streamed(
                lambda path, start, stop: self._bucket.read_range(f"{folder}/{path}", start, stop), address, manifest
            ) as pipeline:
                yield pipeline
        except DamagedError as error:
            if self._sealed(name)[0] != folder:
                raise ChangedError(f"{address} was replaced while it was loaded", "Load it again") from error
            raise

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        """Every file comes down to be hashed and is dropped again: count on a download's time."""
        while True:
            folder, manifest = self._sealed(name)

            def sha256(path: str, advance: Advance, folder: str = folder) -> str | None:
                return self._bucket.sha256(f"{folder}/{path}", advance)

            sizes = {path: one.size_bytes for path, one in self._bucket.objects(folder).items()}
            report = verify_files(manifest, sizes, sha256, progress or Quiet(), at_once=FILES_AT_ONCE)
            if report.ok or self._sealed(name)[0] == folder:  # else it was replaced meanwhile
                return report

    def delete(self, name: str) -> None:
        seal = self._read_seal(check_name(name))
        if not seal:
            raise self._missing(name)
        self._bucket.remove(seal_of(name))
        try:
            clean_up(self._bucket, folder_in(self._bucket, name, seal))
        except DamagedError:  # it does not say which: a sweep finds it
            return

    def free_bytes(self) -> int | None:
        """Of the cache's disk, where a stage is before it is uploaded."""
        return self._staging.free_bytes()

    def sweep(self) -> None:
        """Drop what dead runs left in the local cache, and uploads that nothing has named for a day."""
        self._staging.sweep()
        for name in self._bucket.folders(""):
            try:
                self._drop_abandoned(name, self._read_seal(check_name(name)))
            except InvalidNameError:  # not ours
                continue

    def _drop_abandoned(self, name: str, seal: Note | None) -> None:
        try:
            kept = folder_in(self._bucket, name, seal) if seal else ""
        except DamagedError:  # nobody can say which it is
            return
        for folder in self._uploads(name):
            times = [one.modified for one in self._bucket.objects(folder).values()]
            if folder != kept and times and datetime.datetime.now(datetime.UTC) - max(times) > ABANDONED_AFTER:
                clean_up(self._bucket, folder)

    def _sealed(self, name: str) -> tuple[str, Manifest]:
        """The folder that is the pipeline, and its manifest."""
        while True:
            seal = self._read_seal(check_name(name))
            if not seal:
                raise self._missing(name)
            folder = folder_in(self._bucket, name, seal)
            where = f"{self._url}/{folder}/{MANIFEST_NAME}"
            found = self._bucket.read(f"{folder}/{MANIFEST_NAME}", MANIFEST_MAX_BYTES)
            if found:
                return folder, parse_manifest(found.data, where, name)
            now = self._read_seal(name)
            if now and now.data == seal.data:  # else it was replaced between the two looks
                raise DamagedError(f"{where} is missing", _REPAIR)

    def _read_seal(self, name: str) -> Note | None:
        return self._bucket.read(seal_of(name), SEAL_MAX_BYTES)

    def _uploads(self, name: str) -> Iterable[str]:
        """Each folder of files that was sent for the name."""
        return [f"{name}/{one}" for one in self._bucket.folders(name) if FOLDER.fullmatch(one)]

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"There is no pipeline {name!r} in {self._url}", "See what is there with: wanstore list")
