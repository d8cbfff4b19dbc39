"""Where a transfer's bytes come from: open weight files, or memory of this process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any, Protocol

from wanstore.errors import DamagedError
from wanstore.loading.layout import Layout, Piece
from wanstore.loading.page_cache import cached_spans
from wanstore.loading.weight_files import WeightFile


def room_bytes(layout: Layout) -> int:
    """What `fill` may need for a piece: O_DIRECT reads whole pages, so up to one more at either end."""
    return layout.piece_bytes + 2 * mmap.PAGESIZE


class Source(Protocol):
    """Gives the bytes of pieces, to several threads at once."""

    def look(self, pieces: Sequence[Piece]) -> int:
        """Prepare for these pieces; returns how many of their bytes have to come from a disk."""

    def fill(self, piece: Piece, room: memoryview) -> int:
        """Put the piece's bytes into `room` (`room_bytes`, at a page's start); returns the place of the first."""

    def read(self, source: int, position: int, target: memoryview) -> None:
        """Fill `target` from byte `position` of source number `source` on."""

    def finish(self) -> None:
        """All was read: raise `DamagedError` if it can't be trusted after all."""

    def close(self) -> None:
        """Let go of what this source opened itself."""


class FileSource:
    """Weight files. What is in page cache is read from there, the rest past it where the file system allows.

    O_DIRECT spares a copy and the cache's own bookkeeping: it reads at the disk's own speed. `through_cache` does
    without, for files that are to be read again.
    """

    def __init__(self, files: Sequence[WeightFile], *, through_cache: bool = False) -> None:
        self._files, self._through_cache = files, through_cache
        self._direct: dict[int, int] = {}
        self._uncached: set[tuple[int, int]] = set()

    def look(self, pieces: Sequence[Piece]) -> int:
        uncached_bytes = 0
        for number, file in enumerate(self._files):
            own = [piece for piece in pieces if piece.source == number]
            cached = cached_spans(file.descriptor, [(piece.start, piece.stop) for piece in own])
            missing = [piece for piece, there in zip(own, cached, strict=True) if not there]
            uncached_bytes += sum(piece.stop - piece.start for piece in missing)
            if missing and not self._through_cache and self._open_direct(number):
                self._uncached |= {(number, piece.start) for piece in missing}
        return uncached_bytes

    def where(self, piece: Piece) -> tuple[int, int, int]:
        """What to read for the piece: by which descriptor, from which byte on, and how many bytes."""
        if (piece.source, piece.start) not in self._uncached:
            return self._files[piece.source].descriptor, piece.start, piece.stop - piece.start
        first = piece.start // mmap.PAGESIZE * mmap.PAGESIZE
        stop = -(-piece.stop // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._direct[piece.source], first, stop - first

    def complete(self, piece: Piece, first: int, count: int, room: memoryview) -> None:
        """Read what a piece lacks when `count` bytes from byte `first` on have come into `room`."""
        if first + count < piece.stop:
            self.read(piece.source, first + count, room[count : piece.stop - first])

    def fill(self, piece: Piece, room: memoryview) -> int:
        descriptor, first, size = self.where(piece)
        try:
            count = os.preadv(descriptor, [room[:size]], first)
        except OSError:  # some file systems open a file for O_DIRECT, and then refuse to read it
            count = 0
        self.complete(piece, first, count, room)
        return piece.start - first

    def read(self, source: int, position: int, target: memoryview) -> None:
        file = self._files[source]
        while target:
            try:
                count = os.preadv(file.descriptor, [target], position)
            except OSError as error:
                raise _fault(file, position, f"cannot be read ({error.strerror})") from error
            if count == 0:
                raise _fault(file, position, "is cut off: the file became shorter while it was read")
            position, target = position + count, target[count:]

    def finish(self) -> None:
        for file in self._files:
            file.check_unchanged()

    def close(self) -> None:
        while self._direct:
            os.close(self._direct.popitem()[1])

    def _open_direct(self, number: int) -> bool:
        try:
            self._direct[number] = os.open(self._files[number].path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except (AttributeError, OSError):  # no such flag on macOS; some file systems refuse it
            return False
        ours, theirs = os.fstat(self._files[number].descriptor), os.fstat(self._direct[number])
        if os.path.samestat(ours, theirs):
            return True
        os.close(self._direct.pop(number))  # another file has taken the path meanwhile: header and data must match
        return False


class MemorySource:
    """Buffers of this process: arrays of bytes."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays

    def look(self, pieces: Sequence[Piece]) -> int:
        return 0

    def fill(self, piece: Piece, room: memoryview) -> int:
        self.read(piece.source, piece.start, room[: piece.stop - piece.start])
        return 0

    def read(self, source: int, position: int, target: memoryview) -> None:
        import numpy as np

        # Unlike an assignment to a memoryview, numpy's copy lets other threads run.
        np.copyto(np.frombuffer(target, np.uint8), self._arrays[source][position : position + len(target)])

    def finish(self) -> None: ...

    def close(self) -> None: ...


def _fault(file: WeightFile, position: int, what: str) -> DamagedError:
    return DamagedError(f"{file.path}: tensor {file.tensor_at(position)} {what}", "Run setup again with --replace")
