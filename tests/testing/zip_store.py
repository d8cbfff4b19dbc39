"""A store without pipeline folders: each pipeline is one object, as on S3, here a zip file below `ROOT/objects`."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from wanstore._files import files_below
from wanstore.errors import AlreadyExistsError, DamagedError, NotFoundError, WanstoreError
from wanstore.interfaces import Listing, Progress, Quiet, Stage, Unreadable, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_NAME, Manifest, dump_manifest, parse_manifest
from wanstore.stores._folder import check_against, verify_files
from wanstore.stores._names import check_name
from wanstore.stores.local import LocalStore


class ZipStore(WeightStore):
    """`zip:///ROOT`. Stages are a local store's; an object takes its name in one step, when all of it is there."""

    def __init__(self, url: str) -> None:
        self.root = Path(url.removeprefix("zip://"))
        self._staging = LocalStore(self.root / "staging")

    @property
    def url(self) -> str:
        return f"zip://{self.root}"

    def blob(self, name: str) -> Path:
        return self.root / "objects" / f"{check_name(name)}.zip"

    def list(self) -> Listing:
        pipelines, unreadable = [], []
        for path in sorted((self.root / "objects").glob("*.zip")):
            try:
                pipelines.append(self.manifest(path.stem))
            except WanstoreError as error:
                unreadable.append(Unreadable(path.stem, error.what))
        return Listing(tuple(pipelines), tuple(unreadable))

    def manifest(self, name: str) -> Manifest:
        with self._open(name) as archive:
            return parse_manifest(archive.read(MANIFEST_NAME), f"{self.url}/{name}", name)

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        target = self.blob(name)
        with self._staging.stage(name, resume=resume) as inner:
            if target.exists() and not replace:
                raise AlreadyExistsError(f"{self.url} already holds {name!r}")
            yield _ZipStage(inner, inner.path, inner.scratch, target, replace)

    def local_path(self, name: str) -> Path:
        cached = self.root / "cache" / self.manifest(name).digest / name
        if not cached.exists():
            draft = self.root / "cache" / uuid.uuid4().hex
            with self._open(name) as archive:
                archive.extractall(draft)
            cached.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(cached)
        return cached

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        manifest = self.manifest(name)
        with self._open(name) as archive:

            def sha256(path: str, advance: Callable[[int], None]) -> str | None:
                return hashlib.sha256(archive.read(path)).hexdigest()

            sizes = {info.filename: info.file_size for info in archive.infolist()}
            return verify_files(manifest, sizes, sha256, progress or Quiet(), at_once=1)

    def delete(self, name: str) -> None:
        try:
            self.blob(name).unlink()
        except FileNotFoundError:
            raise self._missing(name) from None

    def sweep(self) -> None:
        self._staging.sweep()
        for copy in (self.root / "cache").glob("*"):
            if time.time() - copy.stat().st_mtime > 24 * 3600:
                shutil.rmtree(copy, ignore_errors=True)

    @contextmanager
    def _open(self, name: str) -> Iterator[zipfile.ZipFile]:
        try:
            archive = zipfile.ZipFile(self.blob(name))
        except FileNotFoundError:
            raise self._missing(name) from None
        except zipfile.BadZipFile as error:
            raise DamagedError(f"{self.url}/{name} is no zip file") from error
        with archive:
            yield archive

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"There is no pipeline {name!r} in {self.url}")


@attrs.frozen
class _ZipStage:
    inner: Stage
    path: Path
    scratch: Path
    target: Path
    replace: bool

    def seal(self, manifest: Manifest) -> None:
        check_against(self.path, manifest)
        draft = self.scratch / "object"
        write_zip(draft, {path: (self.path / path).read_bytes() for path in files_below(self.path)}
                  | {MANIFEST_NAME: dump_manifest(manifest)})  # fmt: skip
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.replace:
            draft.rename(self.target)
            return
        try:
            os.link(draft, self.target)
        except FileExistsError as error:
            raise AlreadyExistsError(f"{self.target} appeared meanwhile") from error

    def discard(self) -> None:
        self.inner.discard()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def read_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
