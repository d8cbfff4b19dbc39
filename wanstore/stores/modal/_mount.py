"""A Modal Volume mounted in a container: a folder whose changes others see once they are committed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import attrs
from filelock import FileLock, Timeout

from wanstore._files import files_below, remove_tree
from wanstore.errors import (
    AccessError,
    BusyError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
    WanstoreError,
)
from wanstore.interfaces import Listing, Progress, Stage, VerifyReport, WeightStore
from wanstore.manifest import Manifest
from wanstore.stores._folder import has_manifest
from wanstore.stores._transfers import RETRY_DELAYS_SECONDS
from wanstore.stores.local import LocalStore
from wanstore.stores.modal._lease import Lease, current_holder

T = TypeVar("T")

_ABANDONED_SECONDS = 24 * 3600.0
"""A stage that nobody has written to for so long is a dead container's."""


class Committable(Protocol):
    """What this needs of a `modal.Volume`."""

    def commit(self) -> object: ...
    def reload(self) -> object: ...


class _MountedFolder(LocalStore):
    """A local store whose locks are outside of it, since a commit or a reload fails while a file is open there.

    They keep runs in this container apart; a lease keeps containers apart. The stages of other containers may
    have come into view by a background commit: they are left alone until they are old.

    gVisor, in which Modal's containers run, cannot swap two folders in one step. There the old pipeline steps
    aside, to a place where readers look when the name is missing, until the new one has taken its name.
    """

    @contextmanager
    def _lock(self, name: str, wait_seconds: float = 2.0) -> Iterator[None]:
        folder = Path(tempfile.gettempdir(), f"wanstore-locks-{os.getuid()}")
        folder.mkdir(exist_ok=True, mode=0o700)
        lock = FileLock(folder / hashlib.sha256(f"{self.root}/{name}".encode()).hexdigest())
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise BusyError(f"Another process in this container is writing {name!r}", "Wait until it is done") from None
        try:
            yield
        finally:
            lock.release()

    def _swapper(self, folder: Path) -> Callable[[Path, Path], None]:
        try:
            return super()._swapper(folder)
        except NotSupportedError:
            return self._step_aside

    def _step_aside(self, new: Path, old: Path) -> None:
        aside = self.own_folder("aside") / old.name
        old.rename(aside)
        new.rename(old)
        aside.rename(new)  # into the stage's folder, which is dropped

    def _aside(self, name: str) -> Path:
        return self.own_folder("aside", make=False) / name

    def _sealed(self, name: str) -> Path:
        try:
            return super()._sealed(name)
        except NotFoundError:
            aside = self._aside(name)
            if has_manifest(aside):
                return aside
            return super()._sealed(name)  # the swap may have ended between the two looks

    def _check_free(self, name: str, replace: bool) -> None:
        self._finish_dead_swap(name)
        super()._check_free(name, replace)

    def _finish_dead_swap(self, name: str) -> None:
        """A run died while the old pipeline stood aside: it comes back, unless the new one is in its place."""
        aside = self._aside(name)
        if aside.is_dir():
            if (self.root / name).exists():
                remove_tree(aside)
            else:
                aside.rename(self.root / name)

    def _sweep(self, except_for: str | None = None) -> None:
        for stage in self.own_folder("stages").iterdir():
            if stage.name != except_for and time.time() - _newest(stage) > _ABANDONED_SECONDS:
                remove_tree(stage)


def _newest(folder: Path) -> float:
    """When something in a folder was last written; now if it is gone."""
    try:
        return max(status.st_mtime for status in (folder.lstat(), *files_below(folder).values()))
    except FileNotFoundError:
        return time.time()


class MountedStore(WeightStore):
    """Pipeline folders below `root`, on a mounted Volume. Staged there, published by rename, then committed.

    The Volume is reloaded, to see what others have committed, when a name is missing and before a stage begins:
    never while a stage of ours is open.
    """

    def __init__(self, url: str, root: Path, volume: Committable, lease: Callable[[str, str], Lease] | None) -> None:
        self._url = url
        self._local = _MountedFolder(root)
        self._volume = volume
        self._lease = lease
        self._open_stages = 0

    @property
    def url(self) -> str:
        return self._url

    def list(self) -> Listing:
        return self._local.list()

    def manifest(self, name: str) -> Manifest:
        return self._look(lambda: self._local.manifest(name))

    def local_path(self, name: str) -> Path:
        return self._look(lambda: self._local.local_path(name))

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        return self._look(lambda: self._local.verify(name, progress=progress))

    def delete(self, name: str) -> None:
        self._check_writable()
        self._look(lambda: self._local.delete(name))
        self._commit()

    def free_bytes(self) -> int | None:
        return self._local.free_bytes()

    def sweep(self) -> None:
        self._local.sweep()

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        self._check_writable()
        before = self._now_sealed(name)
        lease = self._lease(name, current_holder(str(self._local.root))) if self._lease else None
        # The local lock first: an entry of this machine's is then known to be a dead run's.
        with (
            self._local.stage(name, replace=replace, resume=resume) as inner,
            lease.held() if lease else nullcontext(_nothing) as still_ours,
        ):
            # Whoever held the lease until now may have sealed the name, which the view does not show by itself.
            if self._now_sealed(name) != before:
                inner.discard()
                raise BusyError(f"Another run has just written {name!r}", "Try again: it may be what you want")
            self._open_stages += 1
            try:
                yield MountedStage(inner, still_ours, self._commit)
            finally:
                self._open_stages -= 1

    def _now_sealed(self, name: str) -> str | None:
        """The digest of what is sealed as `name`, also by others; None when nothing is, or it cannot be read."""
        if not self._open_stages:
            with suppress(NotFoundError):  # files are open: what is in view has to do
                self._reload()
        try:
            return self._local.manifest(name).digest
        except WanstoreError:
            return None

    def _look(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except NotFoundError:
            if self._open_stages:
                raise
            self._reload()
            return ask()

    def _reload(self) -> None:
        try:
            self._volume.reload()
        except (RuntimeError, FileNotFoundError) as error:
            raise NotFoundError(
                f"It is not in this container's view of {self._url}, which cannot be reloaded ({error})",
                "Close all files on the Volume, leave its folders, and try again",
            ) from error

    def _commit(self) -> None:
        for delay in (*RETRY_DELAYS_SECONDS, None):
            try:
                self._volume.commit()
                return
            except RuntimeError as error:
                if delay is None:
                    raise UnreachableError(
                        f"{self._url} was written, but could not be committed ({error})",
                        "Modal tries again when this container ends: verify it from another one",
                    ) from error
                time.sleep(delay)

    def _check_writable(self) -> None:
        try:
            tempfile.TemporaryFile(dir=self._local.own_folder("stages")).close()
        except OSError as error:
            raise AccessError(
                f"{self._url} cannot be written at {self._local.root} ({error.strerror})",
                "Mount the Volume without read_only",
            ) from error


def _nothing() -> None:
    """The check of a lease that could not be had."""


@attrs.define
class MountedStage:
    """A stage on the mount; sealing publishes and commits it."""

    _inner: Stage
    _still_ours: Callable[[], None]
    _commit: Callable[[], None]
    path: Path = attrs.field(init=False)
    scratch: Path = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path, self.scratch = self._inner.path, self._inner.scratch

    def seal(self, manifest: Manifest) -> None:
        self._still_ours()
        self._inner.seal(manifest)
        self._commit()

    def discard(self) -> None:
        self._inner.discard()
