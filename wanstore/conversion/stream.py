"""One streaming pass over a shard: read, cast, measure, hash and write, in a few megabytes of memory.

The caller's thread reads and casts piece by piece, in the core's own cache; one thread hashes and one writes.
All of them let go of the GIL for the heavy part, so two cores stay busy.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import attrs
import torch

from wanstore.conversion.plan import OutputShard
from wanstore.conversion.statistics import PIECE_ELEMENTS, Float16Caster, TensorStatistics
from wanstore.errors import SourceError
from wanstore.manifest import TensorRecord
from wanstore.safetensors_format import DATA_ALIGNMENT, ITEM_BYTES

_BLOCK_BYTES = 4 << 20
_BLOCKS = 6
_READ_AHEAD_BYTES = 64 << 20
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@attrs.frozen
class WrittenShard:
    """A finished output file: its hash, what the cast did to each tensor, and which tensors are not finite."""

    component: str
    path: str
    size_bytes: int
    sha256: str
    tensors: tuple[TensorRecord, ...]
    not_finite: tuple[str, ...]


def convert_shard(
    shard: OutputShard, source: Path, target: Path, *, clamp: bool, advance: Callable[[int], None]
) -> WrittenShard:
    """Write `shard` from the file `source` to the file `target`, and force it to the disk.

    `advance` hears of source bytes as they are done. Raises `SourceError` when the source ends early, and
    `OSError` when the target cannot be written.
    """
    statistics = [TensorStatistics() for _ in shard.reads]
    caster = Float16Caster(clamp=clamp)
    digest = hashlib.sha256()
    with _Reader(source) as reader, _Writer(target) as writer, ThreadPoolExecutor(1) as hasher:
        under_way: deque[tuple[mmap.mmap, Future[None], Future[None]]] = deque()
        free = [mmap.mmap(-1, _BLOCK_BYTES) for _ in range(_BLOCKS)]

        def flush(block: mmap.mmap, size: int, position: int) -> None:
            view = memoryview(block)[:size]
            under_way.append((block, hasher.submit(digest.update, view), writer.submit(view, position)))

        def next_block() -> mmap.mmap:
            if free:
                return free.pop()
            block, hashed, written = under_way.popleft()
            hashed.result()
            written.result()
            return block

        block, used, position = next_block(), 0, 0
        for offset in range(0, len(shard.layout.header), _BLOCK_BYTES):
            part = shard.layout.header[offset : offset + _BLOCK_BYTES]
            block[: len(part)] = part
            flush(block, len(part), position)
            block, position = next_block(), position + len(part)
        for piece in _pieces(shard):
            room = (_BLOCK_BYTES - used) // piece.item_bytes
            done = 0
            while done < piece.elements:
                if room == 0:
                    flush(block, used, position)
                    block, position, used = next_block(), position + used, 0
                    room = _BLOCK_BYTES // piece.item_bytes
                count = min(piece.elements - done, room)
                raw = reader.read(piece.start + done * piece.source_item_bytes, count * piece.source_item_bytes)
                if raw is None:
                    raise SourceError(
                        f"{shard.source_path} ends inside {shard.reads[piece.tensor].name}", "Fetch the source again"
                    )
                size = count * piece.item_bytes
                if piece.dtype is None:
                    block[used : used + size] = bytes(raw)
                else:
                    caster.cast(
                        torch.frombuffer(raw, dtype=piece.dtype),
                        torch.frombuffer(block, dtype=torch.float16, offset=used, count=count),
                        statistics[piece.tensor],
                    )
                advance(len(raw))
                used, done, room = used + size, done + count, room - count
        if used:
            flush(block, used, position)
        for _, hashed, written in under_way:
            hashed.result()
            written.result()
        writer.finish()
    return WrittenShard(
        component=shard.component,
        path=shard.path,
        size_bytes=shard.layout.file_bytes,
        sha256=digest.hexdigest(),
        tensors=tuple(
            sums.record(read, place.dtype)
            for sums, read, place in zip(statistics, shard.reads, shard.layout.tensors, strict=True)
        ),
        not_finite=tuple(r.name for sums, r in zip(statistics, shard.reads, strict=True) if sums.not_finite),
    )


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch from splitting a piece over cores, which hash and write already: it would wait for itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@attrs.frozen
class _Piece:
    """Part of one tensor, small enough for the cache; `dtype` is None when bytes are copied as they are."""

    tensor: int
    start: int
    elements: int
    source_item_bytes: int
    item_bytes: int
    dtype: torch.dtype | None


def _pieces(shard: OutputShard) -> Iterator[_Piece]:
    for number, (read, place) in enumerate(zip(shard.reads, shard.layout.tensors, strict=True)):
        dtype = _FLOATS.get(read.dtype) if place.dtype == "F16" else None
        item = ITEM_BYTES[read.dtype]
        for first in range(0, read.elements, PIECE_ELEMENTS):
            count = min(PIECE_ELEMENTS, read.elements - first)
            yield _Piece(number, read.start + first * item, count, item, ITEM_BYTES[place.dtype], dtype)


class _Reader:
    """Reads pieces of a file into one small buffer, the kernel reading ahead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffer = memoryview(bytearray(PIECE_ELEMENTS * 8))
        self._asked = 0

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, start: int, size: int) -> memoryview | None:
        """`size` bytes from `start`, valid until the next call; None when the file ends before."""
        self._read_ahead(start)
        got = 0
        while got < size:
            count = os.preadv(self._file, [self._buffer[got:size]], start + got)
            if count == 0:
                return None
            got += count
        return self._buffer[:size]

    def _read_ahead(self, start: int) -> None:
        if start + _READ_AHEAD_BYTES > self._asked and hasattr(os, "posix_fadvise"):
            begin = max(start, self._asked)
            self._asked = start + 2 * _READ_AHEAD_BYTES
            os.posix_fadvise(self._file, begin, self._asked - begin, os.POSIX_FADV_WILLNEED)


class _Writer:
    """Writes blocks in a thread of its own: past the page cache where the file system allows it.

    O_DIRECT saves a copy and the wait for write-back at the end; it wants whole pages, so a tail goes the
    ordinary way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        self._direct = self._open_direct()
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for descriptor in (self._file, self._direct):
            if descriptor is not None:
                os.close(descriptor)

    def _open_direct(self) -> int | None:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_DIRECT)
        except (AttributeError, OSError):  # not Linux, or a file system without it
            return None

    def submit(self, view: memoryview, position: int) -> Future[None]:
        return self._thread.submit(self._write, view, position)

    def _write(self, view: memoryview, position: int) -> None:
        done = 0
        if self._direct is not None and position % DATA_ALIGNMENT == 0:
            done = self._write_direct(view[: len(view) // DATA_ALIGNMENT * DATA_ALIGNMENT], position)
        while done < len(view):
            done += os.pwrite(self._file, view[done:], position + done)

    def _write_direct(self, view: memoryview, position: int) -> int:
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._direct or 0, view[done:], position + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return done

    def finish(self) -> None:
        """Force everything to the disk."""
        os.fsync(self._file)
