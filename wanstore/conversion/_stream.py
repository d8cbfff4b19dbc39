"""One streaming pass over a shard: read, cast, measure, hash and write, in some 60 MB of memory.

The output is cut into blocks. A few threads fill blocks, piece by piece in their core's own cache; one thread
hashes the blocks in order and one writes them. All release the GIL for the heavy part, so that every core is busy.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import attrs
import torch

from wanstore._files import PAGE_BYTES, BlockFile, open_direct
from wanstore._formats._safetensors import ITEM_BYTES
from wanstore.conversion._statistics import PIECE_ELEMENTS, Float16Caster, TensorStatistics
from wanstore.errors import SourceError
from wanstore.interfaces import OutputShard
from wanstore.manifest import TensorRecord
from wanstore.transfer._page_cache import cached_share

_BLOCK_BYTES = 4 << 20
_FILLING_THREADS = max(1, min(3, os.cpu_count() or 1))
"""Three fill faster than one core can hash."""
_WAITING_THREADS = 4
"""So many more wait for the disk where nothing reads ahead."""
_SPARE_BLOCKS = 5
"""On their way to be hashed and written."""
_READ_AHEAD_BYTES = 64 << 20
_MOSTLY = 0.5
"""A file of which this share is in the page cache is read through it."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


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

    `advance` receives the source bytes that are done. Raises `SourceError` when the source ends early, and
    `OSError` when the target cannot be written.
    """
    totals = [TensorStatistics() for _ in shard.reads]
    digest = hashlib.sha256()
    filling: deque[tuple[_Block, mmap.mmap, Future[_Partials]]] = deque()
    leaving: deque[tuple[mmap.mmap, Future[None], Future[None]]] = deque()
    with ExitStack() as stack:
        stack.enter_context(_one_torch_thread())
        reader = stack.enter_context(_Reader(source))
        writer = stack.enter_context(_Writer(target))
        hasher = stack.enter_context(ThreadPoolExecutor(1))
        threads = _FILLING_THREADS + (0 if reader.kernel_reads_ahead else _WAITING_THREADS)
        free = [mmap.mmap(-1, _BLOCK_BYTES) for _ in range(threads + _SPARE_BLOCKS)]
        fillers = stack.enter_context(ThreadPoolExecutor(threads))
        filler = _Filler(shard, reader, clamp=clamp)

        def send_on() -> None:
            """Hash and write the oldest block that is being filled."""
            block, buffer, filled = filling.popleft()
            for number, partial in filled.result():
                totals[number].add(partial)
            view = memoryview(buffer)[: block.size]
            leaving.append((buffer, hasher.submit(digest.update, view), writer.submit(view, block.position)))
            advance(block.source_bytes)

        for block in _blocks(shard):
            if len(filling) > threads:
                send_on()
            if not free:
                buffer, hashed, written = leaving.popleft()
                hashed.result()
                written.result()
                free.append(buffer)
            buffer = free.pop()
            reader.read_ahead(block)
            filling.append((block, buffer, fillers.submit(filler.fill, block, buffer)))
        while filling:
            send_on()
        for _, hashed, written in leaving:
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
            for sums, read, place in zip(totals, shard.reads, shard.layout.tensors, strict=True)
        ),
        not_finite=tuple(read.name for sums, read in zip(totals, shard.reads, strict=True) if sums.not_finite),
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch from splitting a piece over cores, which hash and write already: it would wait for itself.

    Threads that are new take the setting over, and only this call's own restores it for all that follow.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@attrs.frozen
class _Piece:
    """Part of one tensor, small enough for the cache: from `start` in the source to `offset` in its block."""

    tensor: int
    start: int
    offset: int
    elements: int


@attrs.define
class _Block:
    """Up to `_BLOCK_BYTES` of the output file at `position`; `header` is what of the file's header is in it."""

    position: int
    header: bytes = b""
    pieces: list[_Piece] = attrs.field(factory=list)
    size: int = 0
    source_bytes: int = 0


_Partials = list[tuple[int, TensorStatistics]]


def _blocks(shard: OutputShard) -> Iterator[_Block]:
    """The output file in order, cut into blocks."""
    header = shard.layout.header
    for position in range(0, len(header), _BLOCK_BYTES):
        part = header[position : position + _BLOCK_BYTES]
        yield _Block(position, header=part, size=len(part))
    block = _Block(len(header))
    for number, (read, place) in enumerate(zip(shard.reads, shard.layout.tensors, strict=True)):
        item, source_item = ITEM_BYTES[place.dtype], ITEM_BYTES[read.dtype]
        done = 0
        while done < read.elements:
            count = min(PIECE_ELEMENTS, read.elements - done, (_BLOCK_BYTES - block.size) // item)
            if count == 0:
                yield block
                block = _Block(block.position + block.size)
                continue
            block.pieces.append(_Piece(number, read.start + done * source_item, block.size, count))
            block.size += count * item
            block.source_bytes += count * source_item
            done += count
    if block.size:
        yield block


class _Filler:
    """Fills blocks; any number of threads may do so at once, each with its own buffers."""

    def __init__(self, shard: OutputShard, reader: _Reader, *, clamp: bool) -> None:
        self._shard = shard
        self._reader = reader
        self._clamp = clamp
        self._own = threading.local()

    def fill(self, block: _Block, buffer: mmap.mmap) -> _Partials:
        """Put the block's bytes into `buffer`; the statistics of its pieces, tensor by tensor."""
        if not hasattr(self._own, "caster"):
            self._own.caster = Float16Caster(clamp=self._clamp)
            self._own.buffer = mmap.mmap(-1, PIECE_ELEMENTS * max(ITEM_BYTES.values()) + 2 * PAGE_BYTES)
        buffer[: len(block.header)] = block.header
        partials: _Partials = []
        for piece in block.pieces:
            if not partials or partials[-1][0] != piece.tensor:
                partials.append((piece.tensor, TensorStatistics()))
            self._fill_piece(piece, buffer, partials[-1][1])
        return partials

    def _fill_piece(self, piece: _Piece, buffer: mmap.mmap, sums: TensorStatistics) -> None:
        read, place = self._shard.reads[piece.tensor], self._shard.layout.tensors[piece.tensor]
        raw = self._reader.read(self._own.buffer, piece.start, piece.elements * ITEM_BYTES[read.dtype])
        if raw is None:
            raise SourceError(f"{self._shard.source_path} ends inside {read.name}", "Fetch the source again")
        if place.dtype == "F16":
            values = torch.frombuffer(raw, dtype=FLOATS[read.dtype])
            target = torch.frombuffer(buffer, dtype=torch.float16, offset=piece.offset, count=piece.elements)
            self._own.caster.cast(values, target, sums)
        else:
            buffer[piece.offset : piece.offset + len(raw)] = raw


class _Reader:
    """Reads parts of a file from any thread: past the page cache, if that does not hold the file.

    What was downloaded just now is not there, and to fill the cache with it would cost more than to read it. Without
    O_DIRECT the kernel reads ahead.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asked = 0

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_RDONLY)
        cached = cached_share([self._file]) > _MOSTLY
        self._direct = None if cached else open_direct(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._file, self._direct):
            if descriptor is not None:
                os.close(descriptor)

    @property
    def kernel_reads_ahead(self) -> bool:
        """Whether parts are in memory before they are asked for."""
        return self._direct is None

    def read(self, into: mmap.mmap, start: int, size: int) -> memoryview | None:
        """The `size` bytes from `start`, in `into`, which has two pages more than that; None if the file ends before.

        Always at its beginning: the last digits of sums depend on how values lie in memory.
        """
        view = memoryview(into)
        if self._direct is not None:
            first = start // PAGE_BYTES * PAGE_BYTES
            wanted = -(-(start + size - first) // PAGE_BYTES) * PAGE_BYTES
            with suppress(OSError):  # whatever it is, the ordinary way says it better
                if first + os.preadv(self._direct, [view[:wanted]], first) >= start + size:
                    into.move(0, start - first, size)
                    return view[:size]
        got = 0
        while got < size:
            count = os.preadv(self._file, [view[got:size]], start + got)
            if count == 0:
                return None
            got += count
        return view[:size]

    def read_ahead(self, block: _Block) -> None:
        """Tell the kernel what will be wanted soon."""
        start = block.pieces[0].start if block.pieces else 0
        if self.kernel_reads_ahead and start + _READ_AHEAD_BYTES > self._asked and hasattr(os, "posix_fadvise"):
            begin = max(start, self._asked)
            self._asked = start + 2 * _READ_AHEAD_BYTES
            os.posix_fadvise(self._file, begin, self._asked - begin, os.POSIX_FADV_WILLNEED)


class _Writer:
    """Writes blocks to a new file, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file = BlockFile(self._path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._file.close()

    def submit(self, view: memoryview, position: int) -> Future[None]:
        return self._thread.submit(self._file.write, view, position)

    def finish(self) -> None:
        """Force everything to the disk."""
        os.fsync(self._file.descriptor)
