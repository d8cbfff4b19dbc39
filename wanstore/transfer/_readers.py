"""Where a transfer's bytes come from: open weight files, or memory of this process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from wanstore.errors import DamagedError
from wanstore.transfer._layout import BufferLayout, Chunk
from wanstore.transfer._page_cache import cached_spans, can_tell
from wanstore.transfer._weight_file import WeightFile


def slot_bytes(layout: BufferLayout) -> int:
    """What `fill` may need for a chunk: O_DIRECT reads whole pages, so up to one more at either end."""
    return layout.chunk_bytes + 2 * mmap.PAGESIZE


class Reader(Protocol):
    """Gives the bytes of chunks, to several threads at once."""

    def look(self, chunks: Sequence[Chunk]) -> int | None:
        """Prepare for these chunks; returns how many of their bytes are not in page cache, None if nobody can tell."""

    def fill(self, chunk: Chunk, slot: memoryview) -> int:
        """Put the chunk's bytes into `slot` (`slot_bytes`, at a page's start); returns the place of the first."""

    def at_once(self, chunk: Chunk) -> memoryview | None:
        """The chunk's bytes, where each request takes its time; None where `read` may be asked for the parts."""

    def read(self, file: int, position: int, target: memoryview) -> None:
        """Fill `target` from byte `position` of file number `file` on."""

    def finish(self) -> None:
        """All was read: raise `DamagedError` if it can't be trusted after all."""

    def stop(self) -> None:
        """Nobody needs what is being read: reads that take long end soon, with an error."""

    def close(self) -> None:
        """Let go of what this reader opened itself."""


class FileReader:
    """Weight files. What is in page cache is read from there, the rest past it where the file system allows.

    O_DIRECT spares a copy and the cache's own bookkeeping: it reads at the disk's own speed. `through_cache` does
    without, for files that are to be read again.
    """

    def __init__(self, files: Sequence[WeightFile], *, through_cache: bool = False) -> None:
        self.files, self._through_cache = files, through_cache
        self.all_cached = False
        """Whether all that was looked for is in page cache."""
        self._direct: dict[int, int] = {}
        self._uncached: set[tuple[int, int]] = set()

    def look(self, chunks: Sequence[Chunk]) -> int | None:
        uncached_bytes = 0
        for number, file in enumerate(self.files):
            own = [chunk for chunk in chunks if chunk.file == number]
            cached = cached_spans(file.descriptor, [(chunk.start, chunk.stop) for chunk in own])
            missing = [chunk for chunk, there in zip(own, cached, strict=True) if not there]
            uncached_bytes += sum(chunk.stop - chunk.start for chunk in missing)
            if missing and not self._through_cache and self._open_direct(number):
                self._uncached |= {(number, chunk.start) for chunk in missing}
        self.all_cached = can_tell() and uncached_bytes == 0
        return uncached_bytes if can_tell() else None

    def where(self, chunk: Chunk) -> tuple[int, int, int]:
        """What to read for the chunk: by which descriptor, from which byte on, and how many bytes."""
        if (chunk.file, chunk.start) not in self._uncached:
            return self.files[chunk.file].descriptor, chunk.start, chunk.stop - chunk.start
        first = chunk.start // mmap.PAGESIZE * mmap.PAGESIZE
        stop = -(-chunk.stop // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._direct[chunk.file], first, stop - first

    def complete(self, chunk: Chunk, first: int, count: int, slot: memoryview) -> None:
        """Read what a chunk lacks when `count` bytes from byte `first` on have come into `slot`."""
        if first + count < chunk.stop:
            self.read(chunk.file, first + count, slot[count : chunk.stop - first])

    def fill(self, chunk: Chunk, slot: memoryview) -> int:
        descriptor, first, size = self.where(chunk)
        try:
            count = os.preadv(descriptor, [slot[:size]], first)
        except OSError:  # some file systems open a file for O_DIRECT, and then refuse to read it
            count = 0
        self.complete(chunk, first, count, slot)
        return chunk.start - first

    def at_once(self, chunk: Chunk) -> None:
        return None

    def read(self, file: int, position: int, target: memoryview) -> None:
        opened = self.files[file]
        while target:
            try:
                count = os.preadv(opened.descriptor, [target], position)
            except OSError as error:
                raise _fault(opened, position, f"cannot be read ({error.strerror})") from error
            if count == 0:
                raise _fault(opened, position, "is cut off: the file became shorter while it was read")
            position, target = position + count, target[count:]

    def finish(self) -> None:
        for file in self.files:
            file.check_unchanged()

    def stop(self) -> None: ...

    def close(self) -> None:
        while self._direct:
            os.close(self._direct.popitem()[1])

    def _open_direct(self, number: int) -> bool:
        try:
            self._direct[number] = os.open(self.files[number].path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except (AttributeError, OSError):  # no such flag on macOS; some file systems refuse it
            return False
        ours, theirs = os.fstat(self.files[number].descriptor), os.fstat(self._direct[number])
        if os.path.samestat(ours, theirs):
            return True
        os.close(self._direct.pop(number))  # another file has taken the path meanwhile: header and data must match
        return False


class RangeSource(Protocol):
    """Where files' bytes are, if not in them."""

    def read(self, file: Path, start: int, stop: int) -> memoryview: ...
    def check(self) -> None: ...
    def stop(self) -> None: ...


class StreamReader:
    """Weight files that have nothing but their headers: the rest comes from `source`, each file's in order."""

    def __init__(self, files: Sequence[WeightFile], source: RangeSource) -> None:
        self._files, self._source = files, source

    def look(self, chunks: Sequence[Chunk]) -> None:
        return None

    def fill(self, chunk: Chunk, slot: memoryview) -> int:
        self.read(chunk.file, chunk.start, slot[: chunk.stop - chunk.start])
        return 0

    def at_once(self, chunk: Chunk) -> memoryview:
        return self._source.read(self._files[chunk.file].path, chunk.start, chunk.stop)

    def read(self, file: int, position: int, target: memoryview) -> None:
        copy_bytes(self._source.read(self._files[file].path, position, position + len(target)), target)

    def finish(self) -> None:
        self._source.check()

    def stop(self) -> None:
        self._source.stop()

    def close(self) -> None: ...


class MemoryReader:
    """Buffers of this process: arrays of bytes."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays

    def look(self, chunks: Sequence[Chunk]) -> int:
        return 0

    def fill(self, chunk: Chunk, slot: memoryview) -> int:
        self.read(chunk.file, chunk.start, slot[: chunk.stop - chunk.start])
        return 0

    def at_once(self, chunk: Chunk) -> None:
        return None

    def read(self, file: int, position: int, target: memoryview) -> None:
        copy_bytes(self._arrays[file][position : position + len(target)], target)

    def finish(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


def copy_bytes(data: Any, target: memoryview) -> None:
    """Copy bytes. Unlike an assignment to a memoryview, numpy's copy lets other threads run."""
    import numpy as np

    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(data, np.uint8))


def _fault(file: WeightFile, position: int, what: str) -> DamagedError:
    return DamagedError(f"{file.path}: tensor {file.tensor_at(position)} {what}", "Run setup again with --replace")
