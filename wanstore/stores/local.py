"""A store in a folder of a local disk.

    ROOT/NAME/                     a sealed pipeline: a plain diffusers folder with its wanstore.json
    ROOT/.wanstore/stages/NAME/    a run's work: pipeline/, scratch/, and key when it can be resumed
    ROOT/.wanstore/locks/NAME      held by the live run that works on NAME
    ROOT/.wanstore/trash/          pipelines on their way out

A pipeline is published by one rename, or one exchange when it replaces another, after all of it is on the
disk. A stage whose lock nobody holds belongs to a dead run: a run with the same key takes it up again, any
other sweeps it.
"""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
from filelock import FileLock, Timeout

from wanstore._error_translation import plain_os_errors
from wanstore._files import sync, sync_tree
from wanstore.errors import AlreadyExistsError, BusyError, NotFoundError, NotSupportedError, WanstoreError
from wanstore.interfaces import Progress, Stage, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_NAME, Manifest, dump_manifest, read_manifest
from wanstore.stores._atomic_swap import check_swap, swap
from wanstore.stores._folder import check_against, verify_folder
from wanstore.stores._names import check_name

_LOCK_WAIT_SECONDS = 2.0
"""A sweeper holds a lock only this briefly; a lock held for longer is a live run's."""


class LocalStore(WeightStore):
    """Pipeline folders below one root. `location` is a path or a `file://` URL; it need not exist yet."""

    def __init__(self, location: str | Path) -> None:
        self.root = Path(_path(str(location))).expanduser().absolute()
        self._own = self.root / ".wanstore"

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def list(self) -> builtins.list[Manifest]:
        found = []
        self._check_root()
        for entry in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            try:
                found.append(self.manifest(entry.name))
            except (WanstoreError, OSError):  # a foreign, damaged or closed folder hides none of the others
                continue
        return found

    def manifest(self, name: str) -> Manifest:
        manifest = read_manifest(self._sealed(name))
        if manifest is None:  # deleted since the line above
            raise self._missing(name)
        return manifest

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        check_name(name)
        self._check_root()
        with plain_os_errors(self.root), self._lock(name):
            self._check_free(name, replace)
            stage = _LocalStage(self.root / name, self._own / "stages" / name)
            stage.prepare(resume)
            if replace:
                stage.swap = self._swapper(stage.work)
            self._sweep(except_for=name)
            try:
                yield stage
            except BaseException:
                if resume is None:
                    stage.discard()
                raise
            else:
                stage.discard()

    def local_path(self, name: str) -> Path:
        return self._sealed(name)

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        return verify_folder(self._sealed(name), self.manifest(name), progress)

    def delete(self, name: str) -> None:
        folder = self._sealed(name)
        with plain_os_errors(self.root):
            grave = self._own / "trash" / f"{name}-{uuid.uuid4().hex}"
            grave.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.rename(grave)
            except FileNotFoundError:
                raise self._missing(name) from None
            sync(self.root)
            shutil.rmtree(grave)

    def sweep(self) -> None:
        if self._own.is_dir():
            with plain_os_errors(self.root):
                self._sweep()

    def _sweep(self, except_for: str | None = None) -> None:
        # What is in the trash was taken out of sight by its one rename: whoever comes by may finish the job.
        shutil.rmtree(self._own / "trash", ignore_errors=True)
        stages = self._own / "stages"
        for name in [entry.name for entry in stages.iterdir()] if stages.is_dir() else []:
            if name != except_for:
                try:
                    with self._lock(name, wait_seconds=0):
                        shutil.rmtree(stages / name, ignore_errors=True)
                except BusyError:
                    continue

    @contextmanager
    def _lock(self, name: str, wait_seconds: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
        locks = self._own / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / name)
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise BusyError(
                f"Another process is writing {name!r} in {self.root}",
                "Wait until it is done, or stop it, and try again",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _swapper(self, folder: Path) -> Callable[[Path, Path], None]:
        """How to swap a new pipeline in `folder` for the old one. Raises `NotSupportedError` before long work."""
        check_swap(folder)
        return swap

    def _check_free(self, name: str, replace: bool) -> None:
        folder = self.root / name
        sealed = not folder.is_symlink() and (folder / MANIFEST_NAME).is_file()
        if sealed and not replace:
            raise AlreadyExistsError(
                f"{self.root} already holds {name!r}", "Choose another name, or replace it with --replace"
            )
        if not sealed and os.path.lexists(folder):
            raise AlreadyExistsError(
                f"{folder} exists and is not a sealed pipeline", "Move it away, or choose another name"
            )

    def _sealed(self, name: str) -> Path:
        folder = self.root / check_name(name)
        if folder.is_symlink() or not (folder / MANIFEST_NAME).is_file():
            raise self._missing(name)
        return folder

    def _check_root(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise NotSupportedError(f"{self.root} is a file", "Name a folder for the store")

    def _missing(self, name: str) -> NotFoundError:
        if (self.root / name / "model_index.json").is_file():
            return NotFoundError(
                f"{self.root / name} is not sealed: it has no {MANIFEST_NAME}",
                "Run setup, or load it as it is with sealed=False",
            )
        return NotFoundError(f"There is no pipeline {name!r} in {self.root}", "See what is there with: wanstore list")


def _path(location: str) -> str:
    """The path that a location stands for; a URL must be one of this machine's files."""
    if not location.startswith("file:"):
        return location
    url = urlsplit(location)
    if url.netloc not in ("", "localhost") or not location.startswith("file://"):
        raise NotSupportedError(f"{location} is not a folder on this machine", "Write file:///FOLDER, or a plain path")
    return unquote(url.path)


@attrs.define
class _LocalStage:
    """A stage in the store's own hidden folder; `work` holds all of it. With `swap` it may replace."""

    target: Path
    work: Path
    swap: Callable[[Path, Path], None] | None = None
    path: Path = attrs.field(init=False)
    scratch: Path = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path = self.work / "pipeline"
        self.scratch = self.work / "scratch"

    def prepare(self, resume: str | None) -> None:
        """Take up what a dead run left under the same key, or start clean."""
        key = self.work / "key"
        if resume is None or not key.is_file() or key.read_text() != resume:
            self.discard()
        self.path.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        if resume is not None and not key.exists():
            key.write_text(resume)

    def seal(self, manifest: Manifest) -> None:
        check_against(self.path, manifest)
        (self.path / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
        sync_tree(self.path)
        # From here on nobody may take this work up again: after an exchange it is the old pipeline.
        (self.work / "key").unlink(missing_ok=True)
        self._publish()
        sync(self.target.parent)

    def _publish(self) -> None:
        if self.swap and self.target.is_dir():
            self.swap(self.path, self.target)
            return
        try:
            self.path.rename(self.target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise AlreadyExistsError(
                    f"{self.target} appeared meanwhile", "Choose another name, or replace it with --replace"
                ) from error
            raise

    def discard(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
