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
import json
import logging
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wanstore.errors import (
    AlreadyExistsError,
    BusyError,
    ChangedError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    UnreachableError,
    WanstoreError,
)
from wanstore.interfaces import Listing, Progress, Quiet, Stage, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_MAX_BYTES, MANIFEST_NAME, FileEntry, Manifest, dump_manifest, parse_manifest
from wanstore.stores._folder import check_against, list_named, verify_files
from wanstore.stores._names import check_name
from wanstore.stores._streamed import StreamedPipeline, streamed
from wanstore.stores._transfers import FILES_AT_ONCE, Advance, all_at_once
from wanstore.stores.cache._download import RemoteStage, download
from wanstore.stores.cache._uses import cache_folder
from wanstore.stores.local import LocalStore
from wanstore.stores.object._bucket import Bucket, Note

_LOG = logging.getLogger("wanstore")
_REPAIR = "Run setup again with --replace"
_SEAL_MAX_BYTES = 4096
_FOLDER = re.compile(r"files-[0-9a-f]{32}")
ABANDONED_AFTER = datetime.timedelta(days=1)
"""A folder that nothing names is somebody's upload while its newest file is younger."""
_RESUMED_UNTIL = ABANDONED_AFTER / 2
"""An older upload begins anew: it would be finished while somebody deletes it."""


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
            self._bucket.folders(""), self.manifest, lambda name: self._bucket.read(_seal_of(name), _SEAL_MAX_BYTES)
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
            yield RemoteStage(inner, lambda _, manifest: self._publish(name, inner, manifest, before))

    def local_path(self, name: str) -> Path:
        while True:
            folder, manifest = self._sealed(name)

            def fetch(path: str, file: IO[bytes], advance: Advance, folder: str = folder) -> None:
                self._bucket.fetch(f"{folder}/{path}", file, advance)

            try:
                return download(fetch, self._url, manifest, self._cache, self.progress)
            except DamagedError:
                if self._sealed(name)[0] == folder:  # else it was replaced while it came down
                    raise

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
        self._bucket.remove(_seal_of(name))
        try:
            self._clean_up(self._folder_in(name, seal))
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
            kept = self._folder_in(name, seal) if seal else ""
        except DamagedError:  # nobody can say which it is
            return
        for folder in self._uploads(name):
            times = [one.modified for one in self._bucket.objects(folder).values()]
            if folder != kept and times and datetime.datetime.now(datetime.UTC) - max(times) > ABANDONED_AFTER:
                self._clean_up(folder)

    def _sealed(self, name: str) -> tuple[str, Manifest]:
        """The folder that is the pipeline, and its manifest."""
        while True:
            seal = self._read_seal(check_name(name))
            if not seal:
                raise self._missing(name)
            folder = self._folder_in(name, seal)
            where = f"{self._url}/{folder}/{MANIFEST_NAME}"
            found = self._bucket.read(f"{folder}/{MANIFEST_NAME}", MANIFEST_MAX_BYTES)
            if found:
                return folder, parse_manifest(found.data, where, name)
            now = self._read_seal(name)
            if now and now.data == seal.data:  # else it was replaced between the two looks
                raise DamagedError(f"{where} is missing", _REPAIR)

    def _read_seal(self, name: str) -> Note | None:
        return self._bucket.read(_seal_of(name), _SEAL_MAX_BYTES)

    def _folder_in(self, name: str, seal: Note) -> str:
        try:
            folder = json.loads(seal.data)["folder"]
        except (ValueError, TypeError, KeyError):
            folder = None
        if not (isinstance(folder, str) and _FOLDER.fullmatch(folder)):
            raise DamagedError(f"{self._url}/{_seal_of(name)} names no folder", _REPAIR)
        return f"{name}/{folder}"

    def _publish(self, name: str, inner: Stage, manifest: Manifest, before: Note | None) -> None:
        check_against(inner.path, manifest)
        folder = _upload_of(name, inner.scratch)
        self._send(inner.path, manifest, folder)
        self._bucket.write(f"{folder}/{MANIFEST_NAME}", dump_manifest(manifest))
        seal = json.dumps({"folder": folder.rpartition("/")[2]}).encode()
        try:
            self._bucket.replace(_seal_of(name), seal, before)
        except BusyError as error:
            now = self._read_seal(name)
            if not (now and now.data == seal):  # else a try that seemed to fail has written it
                self._clean_up(folder)
                raise error if before else AlreadyExistsError(error.what, error.next_step) from error
        if before:
            try:
                self._clean_up(self._folder_in(name, before))
            except DamagedError:  # it did not say which: a sweep finds it
                return

    def _send(self, path: Path, manifest: Manifest, folder: str) -> None:
        """Upload what is not there. Objects are whole, and nobody else writes into the folder: sizes suffice."""
        task = f"upload {manifest.name}"
        self.progress.start(task, manifest.size_bytes)
        lacking = self._lacking(manifest, folder)

        def send(entry: FileEntry, advance: Advance) -> None:
            if entry in lacking:
                self._bucket.send(path / entry.path, f"{folder}/{entry.path}", advance)
            else:
                advance(entry.size_bytes)

        all_at_once(send, manifest.files, lambda count: self.progress.advance(task, count))
        self.progress.finish(task)
        if lacking := self._lacking(manifest, folder):
            raise UnreachableError(
                f"{self._url} does not hold {lacking[0].path} as it was sent", "Run the same command again: it resumes"
            )

    def _lacking(self, manifest: Manifest, folder: str) -> tuple[FileEntry, ...]:
        sizes = {path: one.size_bytes for path, one in self._bucket.objects(folder).items()}
        return tuple(entry for entry in manifest.files if sizes.get(entry.path) != entry.size_bytes)

    def _clean_up(self, folder: str) -> None:
        """Remove what readers no longer see. An error in it must not read as if nothing had changed."""
        try:
            self._bucket.remove(*(f"{folder}/{path}" for path in self._bucket.objects(folder)))
        except WanstoreError as error:
            _LOG.warning("%s: what was there before could not be deleted from the bucket (%s)", folder, error)

    def _uploads(self, name: str) -> Iterable[str]:
        """Each folder of files that was sent for the name."""
        return [f"{name}/{one}" for one in self._bucket.folders(name) if _FOLDER.fullmatch(one)]

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"There is no pipeline {name!r} in {self._url}", "See what is there with: wanstore list")


def _seal_of(name: str) -> str:
    return f"{name}/sealed.json"


def _upload_of(name: str, scratch: Path) -> str:
    """The folder for an upload: that of the work that is resumed, while nobody takes it for abandoned."""
    noted, now = scratch / "upload.json", datetime.datetime.now(datetime.UTC)
    try:
        found = json.loads(noted.read_text())
        if now - datetime.datetime.fromisoformat(found["begun"]) < _RESUMED_UNTIL and _FOLDER.fullmatch(
            found["folder"]
        ):
            return f"{name}/{found['folder']}"
    except (OSError, ValueError, TypeError, KeyError):  # none, or a damaged one: send all of it again
        pass
    folder = f"files-{uuid.uuid4().hex}"
    noted.write_text(json.dumps({"folder": folder, "begun": now.isoformat()}))
    return f"{name}/{folder}"
