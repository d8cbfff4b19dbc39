"""Where tensors go: buffers that they are views of, and the chunks of files that fill them. Plain numbers, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from wanstore._formats._safetensors import ITEM_BYTES, TENSOR_ALIGNMENT, Tensor

CHUNK_BYTES = 8 << 20
"""Read and moved at a time. From 4 MiB on a PCIe 5 link runs at its full rate; of larger ones there are fewer."""
DISK_CHUNK_BYTES = 32 << 20
"""The same for reads from a disk, which is faster the more bytes are requested at once."""
FLOAT16, FLOAT32 = "F16", "F32"


@attrs.frozen
class Buffer:
    """One allocation: `elements` of dtype `final`, filled from bytes of dtype `stored` (both as safetensors' names)."""

    stored: str
    final: str
    elements: int

    @property
    def size_bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.final]


@attrs.frozen
class Place:
    """A tensor as a view: `shape` from element `start` of buffer `buffer` on."""

    buffer: int
    start: int
    shape: tuple[int, ...]
    elements: int


@attrs.frozen
class Part:
    """Bytes `start` to `stop` of a file, which go to `buffer` from element `element` on."""

    start: int
    stop: int
    buffer: int
    element: int


@attrs.frozen
class Chunk:
    """Neighbouring parts of file number `file`, moved in one go, never half an element."""

    file: int
    parts: tuple[Part, ...]

    @property
    def start(self) -> int:
        return self.parts[0].start

    @property
    def stop(self) -> int:
        return self.parts[-1].stop


@attrs.frozen
class BufferLayout:
    """All of a load: the buffers, each tensor's place by its name, and the chunks in the order to move them."""

    buffers: tuple[Buffer, ...]
    places: Mapping[str, Place]
    chunks: tuple[Chunk, ...]
    chunk_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes that all buffers take."""
        return sum(buffer.size_bytes for buffer in self.buffers)


def lay_out_files(
    files: Sequence[tuple[str, Sequence[Tensor], Callable[[str], bool]]], chunk_bytes: int | None = None
) -> BufferLayout:
    """A buffer for each file and kind of tensor. `files` are (prefix of names, tensors, which stay float32).

    Chunks are of `chunk_bytes` at most, by default `CHUNK_BYTES`.

    Floating-point tensors become float16, those that stay float32 are widened; others are kept as they are.
    A file as setup writes it needs one buffer, and one more for what is widened. Every tensor starts at a
    multiple of 256 bytes, as in memory that torch allocates: kernels are chosen by alignment.
    """
    chunk_bytes = chunk_bytes or CHUNK_BYTES
    buffers: list[Buffer] = []
    places: dict[str, Place] = {}
    chunks: list[Chunk] = []
    for number, (prefix, tensors, keeps_float32) in enumerate(files):
        kinds: dict[tuple[str, str], int] = {}
        ends: dict[int, int] = {}
        parts: list[Part] = []
        for tensor in tensors:
            kind = tensor.dtype, _final(tensor, keeps_float32)
            buffer = kinds.setdefault(kind, len(buffers) + len(kinds))
            step = TENSOR_ALIGNMENT // min(ITEM_BYTES[dtype] for dtype in kind)
            start = -(-ends.get(buffer, 0) // step) * step
            ends[buffer] = start + tensor.elements
            places[prefix + tensor.name] = Place(buffer, start, tensor.shape, tensor.elements)
            part = Part(tensor.start, tensor.stop, buffer, start)
            if parts and _follows(part, parts[-1], ITEM_BYTES[tensor.dtype]):
                parts[-1] = attrs.evolve(parts[-1], stop=part.stop)
            elif tensor.elements:
                parts.append(part)
        buffers += [Buffer(*kind, ends[buffer]) for kind, buffer in kinds.items()]
        chunks += _cut(number, parts, buffers, chunk_bytes)
    return BufferLayout(tuple(buffers), places, tuple(chunks), chunk_bytes)


def lay_out_buffers(sizes: Sequence[int]) -> BufferLayout:
    """Copies of buffers of `sizes` bytes, each as it is; file number and buffer number are the same."""
    buffers = [Buffer("U8", "U8", size) for size in sizes]
    chunks = [
        chunk
        for number, size in enumerate(sizes)
        if size
        for chunk in _cut(number, [Part(0, size, number, 0)], buffers, CHUNK_BYTES)
    ]
    return BufferLayout(tuple(buffers), {}, tuple(chunks), CHUNK_BYTES)


def _follows(part: Part, before: Part, item_bytes: int) -> bool:
    """Whether the part follows the other directly, in the file and in the buffer."""
    elements = (before.stop - before.start) // item_bytes
    return (part.buffer, part.start, part.element) == (before.buffer, before.stop, before.element + elements)


def _final(tensor: Tensor, keeps_float32: Callable[[str], bool]) -> str:
    if "F" not in tensor.dtype:
        return tensor.dtype
    return FLOAT32 if keeps_float32(tensor.name) else FLOAT16


def _cut(file: int, parts: Sequence[Part], buffers: Sequence[Buffer], chunk_bytes: int) -> Iterator[Chunk]:
    """Chunks of the parts, which are in the order of the file and leave no gaps.

    They end at multiples of `chunk_bytes` in the file, as a disk's own blocks do.
    """
    chunk: list[Part] = []
    for part in parts:
        item = ITEM_BYTES[buffers[part.buffer].stored]
        start, element = part.start, part.element
        while start < part.stop:
            begin = chunk[0].start if chunk else start
            end = (begin + item - 1) // chunk_bytes * chunk_bytes + chunk_bytes  # one item at least comes before it
            space = (end - start) // item * item
            if space <= 0:
                yield Chunk(file, tuple(chunk))
                chunk = []
                continue
            stop = min(part.stop, start + space)
            chunk.append(Part(start, stop, part.buffer, element))
            element += (stop - start) // item
            start = stop
    if chunk:
        yield Chunk(file, tuple(chunk))
