"""Whole pipelines up to a Modal Volume and down from it.

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

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from wanstore._files import hash_file
from wanstore._formats._json import digest_of, to_json
from wanstore.errors import AlreadyExistsError, DamagedError, WanstoreError
from wanstore.interfaces import Progress
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, dump_manifest
from wanstore.stores.local import LocalStore
from wanstore.stores.modal._client import RemoteVolume

_LOG = logging.getLogger("wanstore")

_BATCH_BYTES = 1 << 30
"""A finished batch is kept, so an upload resumes after its last whole batch."""
_INTENT_MAX_BYTES = 4096
_FILES_AT_ONCE = 4
"""Files on their way down; the client fetches several blocks of each at a time."""


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


def download(volume: RemoteVolume, places: Places, manifest: Manifest, cache: LocalStore, progress: Progress) -> Path:
    """The folder of a pipeline in `cache`, which holds this one only; what is not there yet is fetched.

    Every file is hashed before it counts. Files that an interrupted download finished are kept.
    Raises `DamagedError` when what comes is not what the manifest says.
    """
    name = places.name
    for there in cache.list().pipelines:  # under the name that it had when it came
        if there.digest == manifest.digest:
            return cache.local_path(there.name)
    try:
        with cache.stage(name, resume=manifest.digest) as stage:
            task = f"download {name}"
            progress.start(task, manifest.size_bytes)

            def fetch(entry: FileEntry) -> None:
                _fetch_file(volume, f"{places.folder}/{entry.path}", entry, stage.path, stage.scratch, progress, task)

            _all_at_once(fetch, manifest.files)
            progress.finish(task)
            stage.seal(manifest)
    except AlreadyExistsError:  # another run was quicker
        pass
    return cache.local_path(name)


def _all_at_once(work: Callable[[FileEntry], None], entries: Iterable[FileEntry]) -> None:
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        futures = [pool.submit(work, entry) for entry in entries]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_file(
    volume: RemoteVolume, path: str, entry: FileEntry, folder: Path, scratch: Path, progress: Progress, task: str
) -> None:
    target = folder / entry.path
    if target.is_file() and hash_file(target) == entry.sha256:
        progress.advance(task, entry.size_bytes)
        return
    draft = scratch / hashlib.sha256(entry.path.encode()).hexdigest()
    try:
        with draft.open("wb") as file:
            volume.fetch(path, file, lambda count: progress.advance(task, count))
    except FileNotFoundError:
        raise DamagedError(f"{path!r} is missing on Volume {volume.name!r}", "Run setup again with --replace") from None
    if hash_file(draft) != entry.sha256:
        draft.unlink()
        raise DamagedError(
            f"{path!r} on Volume {volume.name!r} is not what its manifest says", "Run setup again with --replace"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(target)
