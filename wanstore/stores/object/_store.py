"""A store in a bucket: `s3://BUCKET[/prefix]`, `gs://BUCKET[/prefix]`, `az://CONTAINER[/prefix]`.

    PREFIX/NAME/wanstore.json          the manifest: with it NAME is sealed
    PREFIX/NAME/files-CONTENTS/...     its files, a plain pipeline folder; CONTENTS is a digest of their list

Objects appear whole, but one at a time. So a pipeline's files never take the place of another's: they have a folder of
their own. The manifest is written last, on the condition that nobody has written it meanwhile: of two writers one wins,
and a reader finds the files of whichever manifest it has read. Then the old files are deleted. Nothing else below NAME
is touched.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wanstore._error_translation import reason_of
from wanstore._formats._json import digest_of, to_json
from wanstore.errors import (
    AlreadyExistsError,
    BusyError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
    WanstoreError,
)
from wanstore.interfaces import Listing, Progress, Quiet, Stage, Unreadable, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_MAX_BYTES, MANIFEST_NAME, FileEntry, Manifest, dump_manifest, parse_manifest
from wanstore.stores._cache import RemoteStage, all_at_once, cache_folder, download
from wanstore.stores._folder import check_against, verify_files
from wanstore.stores._names import check_name
from wanstore.stores.local import LocalStore
from wanstore.stores.object._bucket import Bucket, Object

_LOG = logging.getLogger("wanstore")
_FILES = "files-"
_FILES_AT_ONCE = 4
ABANDONED_AFTER = datetime.timedelta(days=1)
"""Files without a manifest are somebody's upload while the newest of them is younger."""


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
        pipelines, unreadable = [], []
        for name in self._bucket.folders(""):
            try:
                pipelines.append(self.manifest(name))
            except NotFoundError:  # it has no manifest
                continue
            except (InvalidNameError, DamagedError, NotSupportedError) as error:
                if not isinstance(error, InvalidNameError) or self._bucket.look(f"{name}/{MANIFEST_NAME}"):
                    unreadable.append(Unreadable(name, reason_of(error)))
        return Listing(tuple(pipelines), tuple(unreadable))

    def manifest(self, name: str) -> Manifest:
        place = _manifest_of(name)
        try:
            data = self._bucket.read(place, MANIFEST_MAX_BYTES)
        except FileNotFoundError:
            raise self._missing(name) from None
        except ValueError as error:
            raise DamagedError(
                f"{self._url}/{place} is no manifest ({error})", "Run setup again with --replace"
            ) from error
        return parse_manifest(data, f"{self._url}/{place}", name)

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        before = self._bucket.look(_manifest_of(name))
        if before and not replace:
            raise AlreadyExistsError(
                f"{self._url} already holds {name!r}", "Choose another name, or replace it with --replace"
            )
        with self._staging.stage(name, resume=resume) as inner:
            yield RemoteStage(inner, lambda path, manifest: self._publish(path, manifest, before))

    def local_path(self, name: str) -> Path:
        manifest = self.manifest(name)
        while True:
            folder = _files_of(manifest)

            def fetch(path: str, file: IO[bytes], advance: Callable[[int], None], folder: str = folder) -> None:
                self._bucket.fetch(f"{folder}/{path}", file, advance)

            try:
                return download(fetch, f"{self._url}/{name}", manifest, self._cache, self.progress)
            except DamagedError:
                now = self.manifest(name)
                if now.digest == manifest.digest:
                    raise
                manifest = now  # it was replaced while it came down: begin again with the new one

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        """Every file comes down to be hashed and is dropped again: count on a download's time."""
        while True:
            manifest = self.manifest(name)
            folder = _files_of(manifest)

            def sha256(path: str, advance: Callable[[int], None], folder: str = folder) -> str | None:
                return self._bucket.sha256(f"{folder}/{path}", advance)

            sizes = {path: one.size_bytes for path, one in self._bucket.objects(folder).items()}
            report = verify_files(
                manifest, {**sizes, MANIFEST_NAME: 0}, sha256, progress or Quiet(), at_once=_FILES_AT_ONCE
            )
            # What was replaced meanwhile may look like neither the old nor the new: begin again with the new one.
            if report.ok or self.manifest(name).digest == manifest.digest:
                return report

    def delete(self, name: str) -> None:
        if not self._bucket.look(_manifest_of(name)):
            raise self._missing(name)
        self._bucket.remove(_manifest_of(name))
        self._clean_up(name)

    def free_bytes(self) -> int | None:
        """Of the cache's disk, where a stage is before it is uploaded."""
        return self._staging.free_bytes()

    def sweep(self) -> None:
        """Drop what dead runs left in the local cache, and files that have been without a manifest for a day."""
        self._staging.sweep()
        for name in self._bucket.folders(""):
            try:
                kept = _files_of(self.manifest(name))
            except NotFoundError:
                kept = ""
            except WanstoreError:  # nobody can say which files are its own
                continue
            for folder, objects in self._uploads(name).items():
                age = datetime.datetime.now(datetime.UTC) - max(one.modified for one in objects.values())
                if folder != kept and age > ABANDONED_AFTER:
                    self._bucket.remove(*(f"{folder}/{path}" for path in objects))

    def _publish(self, path: Path, manifest: Manifest, before: Object | None) -> None:
        check_against(path, manifest)
        folder, place = _files_of(manifest), _manifest_of(manifest.name)
        self._send(path, manifest, folder)
        try:
            self._bucket.replace(place, dump_manifest(manifest), before.version if before else None)
        except BusyError as error:
            if not self._is_ours(manifest):  # a try that seemed to fail may have written it
                raise error if before else AlreadyExistsError(error.what, error.next_step) from error
        if self._lacking(manifest, folder):  # deleted by somebody while they counted as there
            self._bucket.remove(place)
            raise BusyError(
                f"{self._url}/{manifest.name} was deleted while it was written", "Run the same command again"
            )
        self._clean_up(manifest.name, keep=folder)

    def _is_ours(self, manifest: Manifest) -> bool:
        try:
            return self.manifest(manifest.name).digest == manifest.digest
        except WanstoreError:
            return False

    def _send(self, path: Path, manifest: Manifest, folder: str) -> None:
        """Upload what is not there. Objects are whole, and the folder's name says what they are: sizes suffice."""
        task = f"upload {manifest.name}"
        self.progress.start(task, manifest.size_bytes)
        lacking = self._lacking(manifest, folder)

        def send(entry: FileEntry) -> None:
            if entry in lacking:
                place = f"{folder}/{entry.path}"
                self._bucket.send(path / entry.path, place, lambda count: self.progress.advance(task, count))
            else:
                self.progress.advance(task, entry.size_bytes)

        all_at_once(send, manifest.files)
        self.progress.finish(task)
        if lacking := self._lacking(manifest, folder):
            raise UnreachableError(
                f"{self._url} does not hold {lacking[0].path} as it was sent", "Run the same command again: it resumes"
            )

    def _lacking(self, manifest: Manifest, folder: str) -> tuple[FileEntry, ...]:
        sizes = {path: one.size_bytes for path, one in self._bucket.objects(folder).items()}
        return tuple(entry for entry in manifest.files if sizes.get(entry.path) != entry.size_bytes)

    def _clean_up(self, name: str, *, keep: str = "") -> None:
        """Remove what readers no longer see. An error in it must not read as if nothing had changed."""
        try:
            for folder, objects in self._uploads(name).items():
                if folder != keep:
                    self._bucket.remove(*(f"{folder}/{path}" for path in objects))
        except WanstoreError as error:
            _LOG.warning("%s: it is done, and the next setup removes what is left in the bucket (%s)", name, error)

    def _uploads(self, name: str) -> dict[str, dict[str, Object]]:
        """Each folder of files that was sent for the name, and what is in it."""
        folders = [f"{name}/{one}" for one in self._bucket.folders(name) if one.startswith(_FILES)]
        return {folder: self._bucket.objects(folder) for folder in folders}

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"There is no pipeline {name!r} in {self._url}", "See what is there with: wanstore list")


def _manifest_of(name: str) -> str:
    return f"{check_name(name)}/{MANIFEST_NAME}"


def _files_of(manifest: Manifest) -> str:
    return f"{manifest.name}/{_FILES}{digest_of({'files': to_json(list(manifest.files))})[:16]}"
