"""A Modal Volume seen from outside: pipelines go up and down through the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from wanstore.errors import BusyError, DamagedError, NotFoundError
from wanstore.interfaces import Listing, Progress, Quiet, Stage, VerifyReport, WeightStore
from wanstore.manifest import MANIFEST_MAX_BYTES, MANIFEST_NAME, Manifest, parse_manifest
from wanstore.stores._folder import check_against, list_named, verify_files
from wanstore.stores._names import check_name
from wanstore.stores._transfers import Blocks
from wanstore.stores.cache._download import download
from wanstore.stores.local import LocalStore
from wanstore.stores.modal._blocks import Places, Upload, check_free, is_sealed, remove
from wanstore.stores.modal._client import RemoteVolume
from wanstore.stores.modal._lease import Lease, current_holder

_HASHING_AT_ONCE = 2
"""Each of these fetches several blocks at a time already."""


@attrs.define
class RemoteStage:
    """A stage in a local folder; sealing uploads it. The client wants to hash a file before it sends it."""

    _inner: Stage
    _publish: Callable[[Path, Manifest], None]
    path: Path = attrs.field(init=False)
    scratch: Path = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path, self.scratch = self._inner.path, self._inner.scratch

    def seal(self, manifest: Manifest) -> None:
        self._publish(self.path, manifest)

    def discard(self) -> None:
        self._inner.discard()


class RemoteStore(WeightStore):
    """Pipeline folders below `prefix` of a Volume. `cache` is a local folder for downloads and stages."""

    def __init__(self, url: str, volume: RemoteVolume, prefix: str, cache: Path, progress: Progress) -> None:
        self._url = url
        self._volume = volume
        self._prefix = prefix
        self._cache = cache
        self._staging = LocalStore(cache / "staging" / prefix)
        self.progress = progress

    @property
    def url(self) -> str:
        return self._url

    def list(self) -> Listing:
        try:
            names = self._volume.folders(self._prefix)
        except (NotFoundError, FileNotFoundError):
            return Listing()
        return list_named(names, self.manifest, lambda name: self._volume.exists(Places(self._prefix, name).manifest))

    def manifest(self, name: str) -> Manifest:
        places = self._places(name)
        where = f"{self._url}/{name}/{MANIFEST_NAME}"
        try:
            data = self._volume.read(places.manifest, MANIFEST_MAX_BYTES)
        except NotFoundError:  # the Volume itself
            raise
        except FileNotFoundError:
            raise self._missing(name) from None
        except ValueError as error:
            raise DamagedError(f"{where} is not a manifest ({error})", "Run setup again with --replace") from error
        return parse_manifest(data, where, name)

    @contextmanager
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> Iterator[Stage]:
        places = self._places(name)
        self._volume.create()
        check_free(self._volume, places, replace)
        lease = Lease(f"{self._volume.name}/{places.folder}", current_holder(str(self._cache)), self._volume.client)
        with self._staging.stage(name, resume=resume) as inner, lease.held() as still_ours:
            yield RemoteStage(inner, lambda path, manifest: self._publish(path, manifest, places, replace, still_ours))

    def _publish(
        self, path: Path, manifest: Manifest, places: Places, replace: bool, still_ours: Callable[[], None]
    ) -> None:
        check_against(path, manifest)
        Upload(self._volume, places, path, manifest, self.progress, still_ours).run(replace)

    def local_path(self, name: str) -> Path:
        places = self._places(name)
        manifest = self.manifest(name)
        while True:
            try:
                return download(self._reader_in(places), self._url, manifest, self._cache, self.progress)
            except DamagedError:
                now = self.manifest(name)
                if now.digest == manifest.digest:
                    raise
                manifest = now  # it was replaced while it came down: begin again with the new one

    def reader(self, name: str) -> Callable[[str], Blocks]:
        self.manifest(name)  # or there is none
        return self._reader_in(self._places(name))

    def _reader_in(self, places: Places) -> Callable[[str], Blocks]:
        return lambda path: self._volume.blocks(f"{places.folder}/{path}")

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        """Every file comes down to be hashed and is dropped again: count on a download's time."""
        places = self._places(name)
        while True:
            manifest = self.manifest(name)
            report = verify_files(
                manifest,
                self._volume.sizes(places.folder),
                lambda path, advance: self._volume.sha256(f"{places.folder}/{path}", advance),
                progress or Quiet(),
                at_once=_HASHING_AT_ONCE,
            )
            # What was replaced meanwhile may look like neither the old nor the new: begin again with the new one.
            if report.ok or self.manifest(name).digest == manifest.digest:
                return report

    def delete(self, name: str) -> None:
        places = self._places(name)
        if not is_sealed(self._volume, places):
            raise self._missing(name)
        remove(self._volume, places)

    def free_bytes(self) -> int | None:
        """Of the cache's disk, where a stage is before it is uploaded."""
        return self._staging.free_bytes()

    def sweep(self) -> None:
        """Drop what dead runs left in the local cache, and unsealed uploads that no live run is at work on."""
        self._staging.sweep()
        intents = Places(self._prefix, "").intent.rstrip("/")
        try:
            names = sorted(self._volume.sizes(intents))
        except NotFoundError:
            return
        for name in names:
            try:
                with self.stage(name, replace=True):
                    self._drop_unsealed(self._places(name))
            except BusyError:
                continue

    def _drop_unsealed(self, places: Places) -> None:
        if is_sealed(self._volume, places):
            self._volume.remove(places.uploads)
            self._volume.remove(places.intent)
        else:
            remove(self._volume, places)

    def _places(self, name: str) -> Places:
        return Places(self._prefix, check_name(name))

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"There is no pipeline {name!r} in {self._url}", "See what is there with: wanstore list")
