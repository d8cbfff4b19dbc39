"""A store on a Modal Volume: `modal://VOLUME[/prefix]`.

In a container with the Volume mounted it works on the mount (see `_mount`); anywhere else through the
client (see `_remote`). Both keep one layout, so what a laptop uploads a container loads, and the other
way round. The Volume is made by the first stage, never by a look.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wanstore.errors import InvalidNameError
from wanstore.interfaces import Listing, Progress, Quiet, Stage, VerifyReport, WeightStore
from wanstore.manifest import Manifest
from wanstore.stores._names import check_name
from wanstore.stores._transfers import Blocks
from wanstore.stores.cache._uses import cache_folder
from wanstore.stores.modal._client import RemoteVolume, import_modal, plain_modal_errors, retrying
from wanstore.stores.modal._lease import Lease
from wanstore.stores.modal._mount import MountedStore
from wanstore.stores.modal._remote import RemoteStore

if TYPE_CHECKING:
    import modal

MOUNTS_VARIABLE = "WANSTORE_MODAL_MOUNTS"
"""Where Volumes are mounted, as `VOLUME=/folder`, several of them set apart by colons."""

_VOLUME_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # what the modal client lets pass


class ModalVolumeStore(WeightStore):
    """Pipeline folders on a Modal Volume.

    `mount` is the folder where the Volume is mounted. Without it, the variable WANSTORE_MODAL_MOUNTS is asked,
    and in a Modal container the folder `/VOLUME`; when neither is there, the client is used. `progress` receives
    of uploads and downloads. `client` is the process's own by default.
    """

    def __init__(
        self,
        url: str,
        *,
        mount: Path | None = None,
        client: modal.Client | None = None,
        progress: Progress | None = None,
    ) -> None:
        import_modal()
        self.volume_name, self.prefix = _parse(url)
        self.mount = mount or _find_mount(self.volume_name)
        self._client = client
        self._store = self._on(self.mount) if self.mount else self._from_outside(progress or Quiet())

    def _on(self, mount: Path) -> MountedStore:
        return MountedStore(self.url, mount / self.prefix, _Handle(self.volume_name, self._client), self._lease)

    def _lease(self, name: str, holder: str) -> Lease:
        return Lease(f"{self.volume_name}/{self.prefix}/{name}".replace("//", "/"), holder, self._client)

    def _from_outside(self, progress: Progress) -> RemoteStore:
        volume = RemoteVolume(self.volume_name, self._client)
        return RemoteStore(self.url, volume, self.prefix, cache_folder() / "modal" / self.volume_name, progress)

    @property
    def progress(self) -> Progress:
        """That of the store which does the work."""
        return self._store.progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self._store.progress = progress

    @property
    def url(self) -> str:
        return f"modal://{self.volume_name}/{self.prefix}".rstrip("/")

    def list(self) -> Listing:
        return self._store.list()

    def manifest(self, name: str) -> Manifest:
        return self._store.manifest(name)

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        with self._store.stage(name, replace=replace, resume=resume) as stage:
            yield stage

    def local_path(self, name: str) -> Path:
        return self._store.local_path(name)

    def reader(self, name: str) -> Callable[[str], Blocks]:
        return self._store.reader(name)

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        return self._store.verify(name, progress=progress)

    def free_bytes(self) -> int | None:
        return self._store.free_bytes()

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def sweep(self) -> None:
        self._store.sweep()


class _Handle:
    """The mounted Volume's commit and reload."""

    def __init__(self, name: str, client: modal.Client | None) -> None:
        self._name = name
        self._client = client

    def _volume(self) -> modal.Volume:
        return cast("modal.Volume", import_modal().Volume.from_name(self._name, client=self._client))

    def commit(self) -> None:
        retrying(lambda: self._volume().commit())

    def reload(self) -> None:
        with plain_modal_errors():
            self._volume().reload()


def _parse(url: str) -> tuple[str, str]:
    volume, _, prefix = url.removeprefix("modal://").partition("/")
    if not _VOLUME_NAME.fullmatch(volume):
        raise InvalidNameError(f"{url!r} does not name a Modal Volume", "Write modal://VOLUME or modal://VOLUME/prefix")
    return volume, "/".join(check_name(part) for part in prefix.split("/") if part)


def _find_mount(volume: str) -> Path | None:
    for pair in filter(None, os.environ.get(MOUNTS_VARIABLE, "").split(":")):
        name, _, folder = pair.partition("=")
        if name == volume:
            return Path(folder)
    usual = Path("/", volume)
    return usual if os.environ.get("MODAL_IS_REMOTE") == "1" and usual.is_dir() else None
