"""A remote pipeline without its weights: they are read where they are stored, hashed as they pass, and kept nowhere."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wanstore._formats._safetensors import FIRST_READ_BYTES, MAX_HEADER_BYTES
from wanstore.errors import DamagedError
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, dump_manifest
from wanstore.stores._transfers import Advance, Blocks, all_at_once, checked

_REPAIR = "Run setup again with --replace"
_PIECE_BYTES = 8 << 20
_FILES_AT_ONCE = 16
"""Most are small: what counts is how long a request takes."""

ReadRange = Callable[[str, int, int], memoryview]
"""Bytes `start` to `stop` of the stored file at a path. Raises `FileNotFoundError` when it is missing."""


class StreamedPipeline:
    """A folder with a pipeline's manifest, its small files, and of each weight file the header and its length.

    The rest of a weight file is a hole: `read` has it from the store. Ranges are trusted once `check` has returned.
    """

    def __init__(self, folder: Path, address: str, manifest: Manifest, read_range: ReadRange) -> None:
        self.folder, self.address = folder, address
        self._read_range = read_range
        self._entries = manifest.files
        self._weights: dict[str, _Passing] = {}

    def read(self, file: Path, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of a weight file; see `Streamed`.

        Raises `DamagedError`, and what the store raises; then nobody else waits any longer.
        """
        path = file.relative_to(self.folder).as_posix()
        try:
            data = self._range(path, start, stop)
            self._weights[path].pass_on(start, data)
        except BaseException as error:
            self.stop(error)
            raise
        return data

    def check(self) -> None:
        """All was read: raise `DamagedError` unless it was what the manifest says."""
        for entry in self._entries:
            if entry.path in self._weights and self._weights[entry.path].sha256 != entry.sha256:
                raise self._damaged(entry.path)

    def stop(self, reason: BaseException | None = None) -> None:
        """Nobody is to wait for ranges that will not be asked for: who does gets the reason."""
        for weights in self._weights.values():
            weights.stop(reason or InterruptedError("the load was stopped"))

    def fetch(self, entry: FileEntry, advance: Advance) -> None:
        """Bring a small file, or a weight file's header, into the folder."""
        target = self.folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            if entry.path.endswith(".safetensors"):
                header = self._header(entry)
                file.write(header)
                file.truncate(entry.size_bytes)
                self._weights[entry.path] = _Passing(header)
                return
            for piece in checked(lambda _: self._pieces(entry), self.address, entry, advance):
                file.write(piece)

    def _pieces(self, entry: FileEntry) -> Blocks:
        for start in range(0, entry.size_bytes, _PIECE_BYTES):
            yield self._range(entry.path, start, min(start + _PIECE_BYTES, entry.size_bytes))

    def _header(self, entry: FileEntry) -> bytes:
        """All before the tensors' data, or what there is of it: whoever opens the file says what is wrong with it."""
        first = bytes(self._range(entry.path, 0, min(FIRST_READ_BYTES, entry.size_bytes)))
        length = 8 + struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else 0
        if len(first) < length <= min(entry.size_bytes, 8 + MAX_HEADER_BYTES):
            first += self._range(entry.path, len(first), length)
        return first[:length]

    def _range(self, path: str, start: int, stop: int) -> memoryview:
        if start == stop:
            return memoryview(b"")
        try:
            data = self._read_range(path, start, stop)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing in {self.address}", _REPAIR) from None
        if len(data) != stop - start:
            raise self._damaged(path)
        return data

    def _damaged(self, path: str) -> DamagedError:
        return DamagedError(f"{path} in {self.address} is not what its manifest says", _REPAIR)


class _Passing:
    """A weight file's bytes as they pass, in order: each thread waits for its turn."""

    def __init__(self, header: bytes) -> None:
        self._digest, self._position = hashlib.sha256(header), len(header)
        self._stopped: BaseException | None = None
        self._turn = threading.Condition()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def pass_on(self, start: int, data: memoryview) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._position == start or self._stopped)
            if self._stopped:
                raise self._stopped
        self._digest.update(data)  # beside other files' threads; of this file's, only one has its turn
        with self._turn:
            self._position += len(data)
            self._turn.notify_all()

    def stop(self, reason: BaseException) -> None:
        with self._turn:
            self._stopped = self._stopped or reason
            self._turn.notify_all()


@contextmanager
def streamed(read_range: ReadRange, address: str, manifest: Manifest) -> Iterator[StreamedPipeline]:
    """The pipeline of `manifest`, in a temporary folder. Raises `DamagedError`, and what the store raises."""
    with tempfile.TemporaryDirectory(prefix="wanstore-") as place:
        folder = Path(place, manifest.name)
        folder.mkdir()
        pipeline = StreamedPipeline(folder, address, manifest, read_range)
        all_at_once(pipeline.fetch, manifest.files, lambda _: None, at_once=_FILES_AT_ONCE)
        (folder / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
        yield pipeline
