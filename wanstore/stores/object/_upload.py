"""A pipeline on its way into a bucket: the stage that sends its files, and the seal that makes them the pipeline."""

from __future__ import annotations

import datetime
import json
import logging
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wanstore._files import read_blocks
from wanstore._formats._json import from_json, to_json
from wanstore.errors import AlreadyExistsError, BusyError, DamagedError, UnreachableError, WanstoreError
from wanstore.interfaces import Progress, Stage
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, dump_manifest
from wanstore.stores._folder import check_against
from wanstore.stores._transfers import Advance, Blocks, all_at_once, counted, taking_back
from wanstore.stores.object._bucket import Bucket, Note

_LOG = logging.getLogger("wanstore")
SEAL_MAX_BYTES = 4096
FOLDER = re.compile(r"files-[0-9a-f]{32}")
"""Where the files of one upload are, below the pipeline's name."""
ABANDONED_AFTER = datetime.timedelta(days=1)
"""A folder that nothing names is somebody's upload while its newest file is younger."""
_RESUMED_UNTIL = ABANDONED_AFTER / 2
"""An older upload begins anew: it would be finished while somebody deletes it."""


class Upload:
    """A `FileStage` for the pipeline `name`: files that are written go up at once, those in the folder with the seal.

    `before` is the seal that was there when it began. What is going to be written is noted in the scratch folder, with
    its hash: an object with another never appears, so one that is there is what the note says.
    """

    def __init__(self, bucket: Bucket, name: str, inner: Stage, before: Note | None, progress: Progress) -> None:
        self._bucket, self._name, self._inner, self._before = bucket, name, inner, before
        self._progress = progress
        self._folder: str | None = None
        self._written: set[FileEntry] = set()
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        return self._inner.path

    @property
    def scratch(self) -> Path:
        return self._inner.scratch

    def holds(self, entry: FileEntry) -> bool:
        self._begun()
        return entry in self._written

    def write(self, entry: FileEntry, blocks: Callable[[], Blocks]) -> None:
        folder = self._begun()
        with self._lock, _notes_on(folder, self.scratch).open("a") as notes:
            notes.write(json.dumps(to_json(entry)) + "\n")
        self._bucket.send(blocks, f"{folder}/{entry.path}")
        with self._lock:
            self._written.add(entry)

    def seal(self, manifest: Manifest) -> None:
        folder = self._begun()
        check_against(self.path, manifest, {entry.path: entry.size_bytes for entry in self._written})
        self._send(manifest, folder)
        self._bucket.write(f"{folder}/{MANIFEST_NAME}", dump_manifest(manifest))
        place, seal = seal_of(self._name), json.dumps({"folder": folder.rpartition("/")[2]}).encode()
        try:
            self._bucket.replace(place, seal, self._before)
        except BusyError as error:
            now = self._bucket.read(place, SEAL_MAX_BYTES)
            if not (now and now.data == seal):  # else a try that seemed to fail has written it
                clean_up(self._bucket, folder)
                raise error if self._before else AlreadyExistsError(error.what, error.next_step) from error
        self._folder = None  # it is the pipeline now, which nobody discards
        if self._before:
            try:
                clean_up(self._bucket, folder_in(self._bucket, self._name, self._before))
            except DamagedError:  # it did not say which: a sweep finds it
                return

    def discard(self) -> None:
        self._inner.discard()
        if self._folder:
            clean_up(self._bucket, self._folder)

    def _begun(self) -> str:
        """The folder that the files go to, which an interrupted upload may have begun."""
        with self._lock:
            if self._folder is None:
                folder = _folder_for(self._name, self.scratch)
                sizes = _sizes_in(self._bucket, folder)
                noted = _noted(_notes_on(folder, self.scratch))
                self._written = {entry for entry in noted if sizes.get(entry.path) == entry.size_bytes}
                self._folder = folder
            return self._folder

    def _send(self, manifest: Manifest, folder: str) -> None:
        """Upload what is not there. Objects are whole, and nobody else writes into the folder: sizes suffice."""
        lacking = [entry for entry in _lacking(self._bucket, folder, manifest) if entry not in self._written]
        task = f"upload {manifest.name}"
        self._progress.start(task, sum(entry.size_bytes for entry in lacking))

        def send(entry: FileEntry, advance: Advance) -> None:
            blocks = taking_back(lambda count: counted(read_blocks(self.path / entry.path), count), advance)
            self._bucket.send(blocks, f"{folder}/{entry.path}")

        all_at_once(send, lacking, lambda count: self._progress.advance(task, count))
        self._progress.finish(task)
        if still := _lacking(self._bucket, folder, manifest):
            raise UnreachableError(
                f"{self._bucket.url} does not hold {still[0].path} as it was sent",
                "Run the same command again: it resumes",
            )


def seal_of(name: str) -> str:
    """Where it says which folder is the pipeline."""
    return f"{name}/sealed.json"


def folder_in(bucket: Bucket, name: str, seal: Note) -> str:
    """The folder that a seal names. Raises `DamagedError`."""
    try:
        folder = json.loads(seal.data)["folder"]
    except (ValueError, TypeError, KeyError):
        folder = None
    if not (isinstance(folder, str) and FOLDER.fullmatch(folder)):
        raise DamagedError(f"{bucket.url}/{seal_of(name)} names no folder", "Run setup again with --replace")
    return f"{name}/{folder}"


def clean_up(bucket: Bucket, folder: str) -> None:
    """Remove what readers no longer see. An error in it must not read as if nothing had changed."""
    try:
        bucket.remove(*(f"{folder}/{path}" for path in bucket.objects(folder)))
    except WanstoreError as error:
        _LOG.warning("%s: what was there before could not be deleted from the bucket (%s)", folder, error)


def _sizes_in(bucket: Bucket, folder: str) -> dict[str, int]:
    return {path: one.size_bytes for path, one in bucket.objects(folder).items()}


def _lacking(bucket: Bucket, folder: str, manifest: Manifest) -> list[FileEntry]:
    sizes = _sizes_in(bucket, folder)
    return [entry for entry in manifest.files if sizes.get(entry.path) != entry.size_bytes]


def _folder_for(name: str, scratch: Path) -> str:
    """The folder for an upload: that of the work that is resumed, while nobody takes it for abandoned."""
    noted, now = scratch / "upload.json", datetime.datetime.now(datetime.UTC)
    try:
        found = json.loads(noted.read_text())
        if now - datetime.datetime.fromisoformat(found["begun"]) < _RESUMED_UNTIL and FOLDER.fullmatch(found["folder"]):
            return f"{name}/{found['folder']}"
    except (OSError, ValueError, TypeError, KeyError):  # none, or a damaged one: send all of it again
        pass
    folder = f"files-{uuid.uuid4().hex}"
    noted.write_text(json.dumps({"folder": folder, "begun": now.isoformat()}))
    return f"{name}/{folder}"


def _notes_on(folder: str, scratch: Path) -> Path:
    return scratch / f"{folder.rpartition('/')[2]}.written"


def _noted(notes: Path) -> list[FileEntry]:
    """The files that may have been written, but for those that were begun with two contents."""
    found: list[FileEntry] = []
    with suppress(OSError, ValueError):  # none, or a line that was cut off: what it was about is sent again
        found.extend(from_json(json.loads(line), FileEntry) for line in notes.read_text().splitlines())
    contents = Counter(entry.path for entry in set(found))
    return [entry for entry in found if contents[entry.path] == 1]
