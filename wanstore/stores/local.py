"""A store in a folder of a local disk.

    ROOT/NAME/                     a sealed pipeline: a plain diffusers folder with its wanstore.json
    ROOT/.wanstore/stages/NAME/    a run's work: pipeline/, scratch/, and key when it can be resumed
    ROOT/.wanstore/locks/NAME      held by the live run that works on NAME
    ROOT/.wanstore/trash/          pipelines on their way out

A pipeline is published by one rename, or one exchange when it replaces another, after all of it is on the
disk. A stage whose lock nobody holds belongs to a dead run: a run with the same key takes it up again, any
other sweeps it. No link below ROOT is followed: it would lead out of the store.
"""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
from filelock import FileLock, Timeout

from wanstore._error_translation import plain_os_errors, reason_of, unconfirmed
from wanstore._files import free_bytes, identity, make_folder, read_small_file, remove_tree, sync, sync_tree
from wanstore.errors import AlreadyExistsError, BusyError, NotFoundError, NotSupportedError, WanstoreError
from wanstore.interfaces import Listing, Progress, Stage, Unreadable, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_NAME, Manifest, dump_manifest, read_manifest
from wanstore.stores._atomic_swap import check_swap, swap
from wanstore.stores._folder import check_against, has_manifest, verify_folder
from wanstore.stores._names import check_name

_LOG = logging.getLogger("wanstore")

_KEY_MAX_BYTES = 4096
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

    def list(self) -> Listing:
        self._check_root()
        pipelines, unreadable = [], []
        for entry in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            try:
                if entry != self._own and (found := self._look_at(entry)):
                    pipelines.append(found)
            except (WanstoreError, OSError) as error:
                unreadable.append(Unreadable(entry.name, reason_of(error)))
        return Listing(tuple(pipelines), tuple(unreadable))

    def _look_at(self, folder: Path) -> Manifest | None:
        """The manifest in `folder`; None when it has none, or is no folder."""
        if folder.is_symlink() and not folder.is_dir():
            return None
        try:
            (folder / MANIFEST_NAME).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        check_name(folder.name)
        if folder.is_symlink():
            raise NotSupportedError(f"{folder} is a link, and no link in a store is followed", "Copy the folder")
        return read_manifest(folder)

    def manifest(self, name: str) -> Manifest:
        manifest = read_manifest(self._sealed(name))
        if manifest is None:  # deleted since the line above
            raise self._missing(name)
        return manifest

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        check_name(name)
        self._check_root()
        if has_manifest(self.root):
            raise NotSupportedError(f"{self.root} is a pipeline, not a store", "Name the folder above it")
        with plain_os_errors(self.root), self._lock(name):
            self._check_free(name, replace)
            stage = _LocalStage(self.root / name, self.own_folder("stages") / name)
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
        while True:
            folder = self._sealed(name)
            began_with = identity(folder)
            report = verify_folder(folder, self.manifest(name), progress)
            # What was replaced meanwhile may look like neither the old nor the new: begin again with the new one.
            if report.ok or identity(self._sealed(name)) == began_with:
                return report

    def delete(self, name: str) -> None:
        folder = self._sealed(name)
        with plain_os_errors(self.root):
            grave = self.own_folder("trash") / f"{name}-{uuid.uuid4().hex}"
            try:
                folder.rename(grave)
            except FileNotFoundError:
                raise self._missing(name) from None
            with unconfirmed(f"{name!r} is deleted from {self.root}", "Look whether it is gone with: wanstore list"):
                sync(self.root)
            remove_tree(grave)
            if grave.exists():
                _LOG.warning("%s: what is left of it in %s is removed by the next setup", name, grave)

    def free_bytes(self) -> int | None:
        return free_bytes(next(folder for folder in (self.root, *self.root.parents) if folder.exists()))

    def sweep(self) -> None:
        if self._own.is_dir():
            with plain_os_errors(self.root):
                self._sweep()

    def _sweep(self, except_for: str | None = None) -> None:
        # What is in the trash was taken out of sight by its one rename: whoever comes by may finish the job. The
        # folder itself stays: a delete may be about to rename something into it.
        for grave in self.own_folder("trash").iterdir():
            remove_tree(grave)
        for stage in self.own_folder("stages").iterdir():
            if stage.name != except_for:
                try:
                    with self._lock(stage.name, wait_seconds=0):
                        remove_tree(stage)
                except BusyError:
                    continue

    def own_folder(self, kind: str, *, make: bool = True) -> Path:
        """A folder of the store's own, made if it is missing, unless it is only looked at."""
        for folder in (self._own, self._own / kind):
            if folder.is_symlink():
                raise NotSupportedError(f"{folder} is a link, and no link in a store is followed", "Remove the link")
        if make:
            make_folder(self._own / kind)
        return self._own / kind

    @contextmanager
    def _lock(self, name: str, wait_seconds: float = _LOCK_WAIT_SECONDS) -> Iterator[None]:
        lock = FileLock(self.own_folder("locks") / name)
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
        sealed = has_manifest(folder)
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
        if not has_manifest(folder):
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
        if resume is None or not self._was_left_by(resume):
            self.discard()
        for folder in (self.work, self.path, self.scratch):
            folder.mkdir(exist_ok=True)
        if resume is not None:
            (self.work / "key").write_text(resume)

    def _was_left_by(self, resume: str) -> bool:
        try:
            for folder in (self.work, self.path, self.scratch):
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    raise ValueError(f"{folder.name} is no folder")
            return read_small_file(self.work / "key", _KEY_MAX_BYTES) == resume.encode()
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            _LOG.warning("%s: what an earlier run left there is damaged (%s): beginning anew", self.work, error)
            return False

    def seal(self, manifest: Manifest) -> None:
        check_against(self.path, manifest)
        (self.path / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
        sync_tree(self.path)
        # From here on nobody may take this work up again: after an exchange it is the old pipeline.
        (self.work / "key").unlink(missing_ok=True)
        self._publish()
        with unconfirmed(f"{self.target} is sealed", f"Check it with: wanstore verify {self.target.name}"):
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
        remove_tree(self.work)
