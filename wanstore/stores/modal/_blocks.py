"""Whole pipelines up to a Modal Volume.

    PREFIX/NAME/                              a sealed pipeline, as on a disk
    PREFIX/.wanstore/intents/NAME             NAME/ is unsealed and ours: what it is to hold, or nothing
    PREFIX/.wanstore/uploads/NAME/CONTENTS/   the files of a pipeline that is to replace another

The client can neither rename nor swap, so a folder is public when its manifest is, and the manifest goes up
last, in its own batch, after a check that every file is there. A pipeline that replaces another is first
sent to the hidden folder. Then the old manifest goes, then the old files, and the new files are put in their
place: Modal knows their blocks by now, so they are hashed again but not sent again. Between the two manifests
the name is not there; at no time does it name a mixture. If a writer dies in between, the next upload resumes
from the recorded intent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from wanstore._formats._json import digest_of, to_json
from wanstore.errors import AlreadyExistsError, DamagedError, WanstoreError
from wanstore.interfaces import Progress
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, dump_manifest
from wanstore.stores.modal._client import RemoteVolume

_LOG = logging.getLogger("wanstore")

_BATCH_BYTES = 1 << 30
"""A finished batch is kept, so an upload resumes after its last whole batch."""
_INTENT_MAX_BYTES = 4096


@attrs.frozen
class Places:
    """Where a pipeline and its bookkeeping are on a Volume."""

    prefix: str
    name: str

    def _below(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    @property
    def folder(self) -> str:
        return self._below(self.name)

    @property
    def manifest(self) -> str:
        return f"{self.folder}/{MANIFEST_NAME}"

    @property
    def intent(self) -> str:
        return self._below(f".wanstore/intents/{self.name}")

    @property
    def uploads(self) -> str:
        return self._below(f".wanstore/uploads/{self.name}")


def is_sealed(volume: RemoteVolume, places: Places) -> bool:
    """Whether the name is taken by a sealed pipeline."""
    return volume.exists(places.manifest)


def check_free(volume: RemoteVolume, places: Places, replace: bool) -> None:
    """Raise `AlreadyExistsError` unless a pipeline may be stored there."""
    if is_sealed(volume, places):
        if not replace:
            raise AlreadyExistsError(
                f"Volume {volume.name!r} already holds {places.folder!r}",
                "Choose another name, or replace it with --replace",
            )
    elif volume.exists(places.folder) and not volume.exists(places.intent):
        raise AlreadyExistsError(
            f"{places.folder!r} on Volume {volume.name!r} is not a sealed pipeline",
            "Move it away, or choose another name",
        )


def remove(volume: RemoteVolume, places: Places) -> None:
    """Remove a pipeline: its manifest first, so that no reader meets a part of it."""
    _note(volume, places, "")
    volume.remove(places.manifest)
    _clean_up(volume, places, places.folder, places.uploads, places.intent)


def _clean_up(volume: RemoteVolume, places: Places, *paths: str) -> None:
    """Remove what readers no longer see, the intent last. An error in it must not read as if nothing had changed."""
    try:
        for path in paths:
            volume.remove(path)
    except WanstoreError as error:
        _LOG.warning("%s: it is done, and the next setup removes what is left on the Volume (%s)", places.name, error)


def _withdraw(volume: RemoteVolume, places: Places) -> None:
    _note(volume, places, "")
    volume.remove(places.manifest)
    volume.remove(places.folder)


def _note(volume: RemoteVolume, places: Places, contents: str) -> None:
    volume.put({places.intent: json.dumps({"contents": contents}).encode()})


def _noted(volume: RemoteVolume, places: Places) -> str | None:
    try:
        return str(json.loads(volume.read(places.intent, _INTENT_MAX_BYTES))["contents"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or a damaged one: send all of it again
        return None


@attrs.frozen
class Upload:
    """The pipeline in the local folder `source`, on its way to a Volume. `still_ours` raises when it is not."""

    volume: RemoteVolume
    places: Places
    source: Path
    manifest: Manifest
    progress: Progress
    still_ours: Callable[[], None]

    def run(self, replace: bool) -> None:
        """Publish it, as this module's docstring says."""
        volume, places = self.volume, self.places
        check_free(volume, places, replace)
        contents = digest_of({"files": to_json(list(self.manifest.files))})
        taken = is_sealed(volume, places)
        if taken:
            self._send(f"{places.uploads}/{contents}", f"upload {places.name}")
        if taken or _noted(volume, places) != contents:
            self.still_ours()
            _withdraw(volume, places)
            _note(volume, places, contents)
        self._send(places.folder, f"publish {places.name}" if taken else f"upload {places.name}")
        self._check_whole()
        self.still_ours()
        volume.put({places.manifest: dump_manifest(self.manifest)})
        _clean_up(volume, places, places.uploads, places.intent)

    def _send(self, folder: str, task: str) -> None:
        there = self.volume.sizes(folder)
        missing = [entry for entry in self.manifest.files if there.get(entry.path) != entry.size_bytes]
        self.progress.start(task, sum(entry.size_bytes for entry in missing))
        for batch in _batches(missing):
            self.volume.put({f"{folder}/{entry.path}": self.source / entry.path for entry in batch})
            self.progress.advance(task, sum(entry.size_bytes for entry in batch))
        self.progress.finish(task)

    def _check_whole(self) -> None:
        listed = {entry.path: entry.size_bytes for entry in self.manifest.files}
        found = self.volume.sizes(self.places.folder)
        wrong = sorted(path for path in found.keys() | listed.keys() if found.get(path) != listed.get(path))
        if wrong:
            raise DamagedError(
                f"{self.places.folder!r} on Volume {self.volume.name!r} was changed meanwhile: {', '.join(wrong[:8])}",
                "Make sure that nothing else writes there, and run the same command again",
            )


def _batches(entries: Iterable[FileEntry]) -> Iterator[list[FileEntry]]:
    batch: list[FileEntry] = []
    for entry in entries:
        if batch and sum(other.size_bytes for other in batch) + entry.size_bytes > _BATCH_BYTES:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch
