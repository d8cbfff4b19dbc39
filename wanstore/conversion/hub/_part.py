"""A file of the Hub that is still arriving: its bytes, which of them are there, and their hash as far as it goes."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import attrs

from wanstore._files import BlockFile
from wanstore.conversion.hub._leftovers import drop, drop_unless_plain

_HASH_BYTES = 1 << 20
_SLICE_BYTES = 16 << 20
_MAX_NOTES_BYTES = 16 << 20
"""A thousand times what the largest file needs."""


@attrs.frozen
class TreeFile:
    """A file of the tree. `sha256` is the Hub's for a large file, `xet` its Xet hash; a small one has git's blob id."""

    path: str
    size: int
    oid: str
    sha256: str | None
    xet: str | None = None

    def hasher(self) -> Any:
        if self.sha256:
            return hashlib.sha256()
        # SHA-1 is what git names its blobs by; here it guards against damage, not against an attacker.
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    def agrees(self, hasher: Any) -> bool:
        return bool(hasher.hexdigest() == (self.sha256 or self.oid))


@attrs.frozen
class Arrived:
    """Bytes that were written to their place, `start`, and are still in `buffer`."""

    start: int
    size: int
    buffer: mmap.mmap

    @property
    def stop(self) -> int:
        return self.start + self.size


class Part:
    """`PATH.part` holds what has arrived of a file, `PATH.pieces` says which bytes that is.

    Any thread may `write`; the rest is the business of one thread. After a kill, the notes tell the next run what to
    fetch; the hash over all bytes decides whether they are right.
    """

    def __init__(self, file: TreeFile, target: Path) -> None:
        self._file = file
        self.path = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f"{target.name}.pieces")

    def __enter__(self) -> Self:
        drop_unless_plain(self.path, written=True)
        drop_unless_plain(self.notes, written=True)
        if not self.path.exists():
            self.notes.unlink(missing_ok=True)
        with ExitStack() as stack:
            self._bytes = stack.enter_context(closing(BlockFile(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)))
            size = os.fstat(self._bytes.descriptor).st_size
            if size > self._file.size:
                os.ftruncate(self._bytes.descriptor, self._file.size)
            self.have = self._noted(size)
            self._hasher = self._file.hasher()
            self._hashed = 0
            self._kept: dict[int, Arrived] = {}
            self._open_notes = stack.enter_context(self.notes.open("a"))
            # Takes the notes' block while there is room, so that a full disk can still be noted.
            self._open_notes.write("\n")
            self._open_notes.flush()
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, view: memoryview, start: int) -> None:
        """Put bytes in their place."""
        self._bytes.write(view, start)

    def note(self, start: int, stop: int) -> None:
        """Take down that these bytes are there."""
        self._open_notes.write(f"[{start}-{stop}]\n")
        self._open_notes.flush()
        self.have = _merged([*self.have, (start, stop)])

    def missing(self) -> list[tuple[int, int]]:
        """What has not arrived, in order."""
        starts, stops = [0] + [stop for _, stop in self.have], [start for start, _ in self.have] + [self._file.size]
        return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]

    def keep(self, new: Arrived, most: int, free: Callable[[mmap.mmap], None]) -> None:
        """Keep what arrived in memory until it is hashed, if it is next, or there are fewer than `most` such blocks.

        `free` receives its buffer otherwise.
        """
        if new.start == self._hashed or len(self._kept) < most:
            self._kept[new.start] = new
        else:
            free(new.buffer)

    def hash_on(self, free: Callable[[mmap.mmap], None]) -> bool:
        """Hash the next bytes, if they are there: a block from memory, or some from the disk. Whether they were."""
        reached = self.have[0][1] if self.have and self.have[0][0] == 0 else 0
        if self._hashed >= reached:
            return False
        if block := self._kept.pop(self._hashed, None):
            self._hasher.update(memoryview(block.buffer)[: block.size])
            self._hashed = block.stop
            free(block.buffer)
            return True
        until = min([reached, self._hashed + _SLICE_BYTES, *(start for start in self._kept if start > self._hashed)])
        before = self._hashed
        self._hashed = _hash(self._bytes.descriptor, before, until, self._hasher)
        if self._hashed == before:  # somebody cut the file: its hash will tell
            self._hashed = self._file.size
        return True

    def let_go(self) -> None:
        """Forget what is kept in memory: its buffers are not ours any more."""
        self._kept.clear()

    @property
    def whole(self) -> bool:
        """Whether every byte is there and hashed."""
        return self._hashed >= self._file.size

    @property
    def right(self) -> bool:
        """Whether the bytes are the Hub's."""
        return self._file.agrees(self._hasher)

    def _noted(self, size: int) -> list[tuple[int, int]]:
        """What earlier runs noted as arrived. A note cut short by a kill does not match."""
        notes = b""
        if self.notes.exists():
            with self.notes.open("rb") as file:
                notes = file.read(_MAX_NOTES_BYTES)
        if len(notes) == _MAX_NOTES_BYTES or not re.fullmatch(rb"[][0-9\n-]*", notes):
            drop(self.notes, "it is damaged")
            return []
        spans = [(int(start), int(stop)) for start, stop in re.findall(rb"\[(\d{1,19})-(\d{1,19})\]", notes)]
        return _merged((start, stop) for start, stop in spans if start < stop <= min(size, self._file.size))


def is_whole(file: TreeFile, path: Path) -> bool:
    """Whether what is at `path` is the whole file, judged by its content."""
    hasher = file.hasher()
    with path.open("rb") as opened:
        return _hash(opened.fileno(), 0, file.size + 1, hasher) == file.size and file.agrees(hasher)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _hash(descriptor: int, start: int, stop: int, hasher: Any) -> int:
    """Hash the bytes from `start` to `stop`, or to the file's end; where it ended."""
    while start < stop and (block := os.pread(descriptor, min(_HASH_BYTES, stop - start), start)):
        hasher.update(block)
        start += len(block)
    return start
