"""A wanstore store of tar archives.

FOLDER/NAME.tar                     a sealed pipeline; its manifest is the first member
FOLDER/.stages/                     a store of folders, of which only the staging areas are used
FOLDER/.unpacked/NAME@DIGEST/NAME   a copy for readers; the digest tells whether it is still the pipeline
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wanstore.errors import AlreadyExistsError, DamagedError, InvalidNameError, NotFoundError, WanstoreError
from wanstore.interfaces import Listing, Progress, Quiet, Stage, Unreadable, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_MAX_BYTES, MANIFEST_NAME, Manifest, dump_manifest, parse_manifest
from wanstore.stores.local import LocalStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_DAY_SECONDS = 24 * 3600


class TarStore(WeightStore):
    """`tar:///FOLDER`. wanstore calls it with the URL; nothing is created before something is stored."""

    def __init__(self, url: str) -> None:
        self.root = Path(url.removeprefix("tar://")).absolute()
        self._stages = LocalStore(self.root / ".stages")
        self._unpacked = self.root / ".unpacked"

    @property
    def url(self) -> str:
        return f"tar://{self.root}"

    def archive(self, name: str) -> Path:
        """Where the pipeline `name` is. Every method comes by here, so no name leads out of the store."""
        if not _NAME.fullmatch(name):
            raise InvalidNameError(f"{name!r} cannot name a pipeline", "Use letters, digits and '._+-'")
        return self.root / f"{name}.tar"

    def list(self) -> Listing:
        pipelines, unreadable = [], []
        for name in sorted(path.name.removesuffix(".tar") for path in self.root.glob("*.tar")):
            try:
                pipelines.append(self.manifest(name))
            except NotFoundError:  # deleted since the line above
                continue
            except (WanstoreError, OSError) as error:
                unreadable.append(Unreadable(name, str(error)))
        return Listing(tuple(pipelines), tuple(unreadable))

    def manifest(self, name: str) -> Manifest:
        with self._open(name) as archive:
            return self._manifest_in(archive, name)

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        target = self.archive(name)
        # Its lock keeps other processes away until the block ends, so whoever seals is alone with the name. It resumes,
        # and turns the system's errors into wanstore's.
        with self._stages.stage(name, resume=resume) as inner:
            if target.exists() and not replace:
                raise AlreadyExistsError(f"{self.url} already holds {name!r}", "Replace it with --replace")
            self.sweep()
            yield _TarStage(inner, target)

    def local_path(self, name: str) -> Path:
        with self._open(name) as archive:
            folder = self._unpacked / f"{name}@{self._manifest_in(archive, name).digest}"
            if not folder.exists():
                self._unpacked.mkdir(exist_ok=True)
                with tempfile.TemporaryDirectory(dir=self._unpacked) as draft:
                    archive.extractall(f"{draft}/copy/{name}", filter="data")
                    try:
                        Path(draft, "copy").rename(folder)
                    except OSError:  # another process may have been quicker
                        if not folder.exists():
                            raise
        return folder / name

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        began, progress, task = time.perf_counter(), progress or Quiet(), f"verify {name}"
        found = {}
        with self._open(name) as archive:  # an open archive stays what it is, also when it is replaced meanwhile
            manifest = self._manifest_in(archive, name)
            progress.start(task, manifest.size_bytes)
            for member in archive:
                if not member.isdir():
                    found[member.name] = _sha256_of(archive, member)
                    progress.advance(task, member.size)
            progress.finish(task)
        listed = {entry.path: entry.sha256 for entry in manifest.files}
        return VerifyReport(
            name=name,
            files=len(manifest.files),
            size_bytes=manifest.size_bytes,
            seconds=time.perf_counter() - began,
            damaged=tuple(sorted(path for path in listed.keys() & found if listed[path] != found[path])),
            missing=tuple(sorted(listed.keys() - found)),
            extra=tuple(sorted(found.keys() - listed - {MANIFEST_NAME})),
        )

    def delete(self, name: str) -> None:
        try:
            self.archive(name).unlink()
        except FileNotFoundError:
            raise self._missing(name) from None
        for copy in self._unpacked.glob(f"{name}@*"):
            shutil.rmtree(copy, ignore_errors=True)

    def sweep(self) -> None:
        self._stages.sweep()
        current = {f"{manifest.name}@{manifest.digest}" for manifest in self.list().pipelines}
        for copy in self._unpacked.glob("*"):  # copies of what was replaced, and those that a killed process began
            if copy.name not in current and time.time() - copy.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(copy, ignore_errors=True)

    @contextmanager
    def _open(self, name: str) -> Iterator[tarfile.TarFile]:
        try:
            file = self.archive(name).open("rb")
        except FileNotFoundError:
            raise self._missing(name) from None
        with file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    yield archive
            except tarfile.TarError as error:
                raise DamagedError(f"{self.archive(name)} is damaged ({error})") from error

    def _manifest_in(self, archive: tarfile.TarFile, name: str) -> Manifest:
        try:
            file = archive.extractfile(MANIFEST_NAME)
        except KeyError as error:
            raise DamagedError(f"{self.archive(name)} has no manifest") from error
        return parse_manifest(file.read(MANIFEST_MAX_BYTES) if file else b"", f"{self.archive(name)}", name)

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"There is no pipeline {name!r} in {self.url}", "See what is there with: wanstore list")


class _TarStage:
    """A staging area of the store of folders. Only how it is sealed differs."""

    def __init__(self, inner: Stage, target: Path) -> None:
        self.path, self.scratch, self.discard = inner.path, inner.scratch, inner.discard
        self._target = target

    def seal(self, manifest: Manifest) -> None:
        found = {
            f"{path.relative_to(self.path)}": path.stat().st_size for path in self.path.rglob("*") if path.is_file()
        }
        if found != {entry.path: entry.size_bytes for entry in manifest.files}:
            raise DamagedError(f"{self.path} does not hold what its manifest lists")
        head, document = tarfile.TarInfo(MANIFEST_NAME), dump_manifest(manifest)
        head.size = len(document)
        draft = self.scratch / "archive.tar"
        with draft.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.addfile(head, io.BytesIO(document))
                for entry in manifest.files:
                    archive.add(self.path / entry.path, entry.path)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._target)  # the one step in which readers see it


def _sha256_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """The hash of a file in the archive; that of a link, which is damage, is no hash."""
    file = archive.extractfile(member) if member.isfile() else None
    return hashlib.file_digest(file, "sha256").hexdigest() if file else "no file"
