"""Headers of safetensors files. Everything that a header claims is checked before it is used.

Format: 8 bytes of little-endian header length, a JSON header, then the tensors' data without gaps
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

import attrs

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
FIRST_READ_BYTES = 100_000
"""Enough for the header of nearly every file in one request."""


class HeaderError(ValueError):
    """The header is wrong, or the file is not as long as it says. The text names the tensor."""


@attrs.frozen
class Tensor:
    """One tensor of a file; `start` and `stop` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(head: Callable[[int], bytes], file_bytes: int) -> tuple[Tensor, ...]:
    """The tensors of a file of `file_bytes` in the order of their data; `head(n)` gives its first n bytes.

    Raises `HeaderError` unless the header is well-formed and its tensors cover the file's data exactly.
    """
    first = head(min(FIRST_READ_BYTES, file_bytes))
    if len(first) < 8:
        raise HeaderError(f"it is too short for a safetensors file ({file_bytes} bytes)")
    (length,) = struct.unpack("<Q", first[:8])
    if length > MAX_HEADER_BYTES or 8 + length > file_bytes:
        raise HeaderError(f"its header claims {length} bytes in a file of {file_bytes}")
    whole = first if 8 + length <= len(first) else head(8 + length)
    document = _parse(whole[8 : 8 + length])
    document.pop("__metadata__", None)
    tensors = sorted((_tensor(*item, 8 + length) for item in document.items()), key=lambda t: (t.start, t.stop))
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            kind = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise HeaderError(f"{tensor.name} {kind}")
        end = tensor.stop
    if end > file_bytes:
        raise HeaderError(f"it is truncated: {end - file_bytes} bytes are missing, {tensors[-1].name} ends past it")
    if end < file_bytes:
        raise HeaderError(f"{file_bytes - end} bytes after its last tensor belong to none")
    return tuple(tensors)


def _parse(raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for name, value in pairs:
            if name in document:
                raise HeaderError(f"{name} is there twice")
            document[name] = value
        return document

    try:
        document = json.loads(raw, object_pairs_hook=once)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise HeaderError("its header is not a JSON object")
    return document


def _tensor(name: str, entry: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise HeaderError(f"{name} has no proper dtype, shape and data_offsets") from error
    if not whole or not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise HeaderError(f"{name} has an unknown dtype, or a shape or offset that is no count")
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise HeaderError(f"{name} is {dtype} {list(shape)} but claims {stop - start} bytes")
    return Tensor(name, dtype, shape, data_start + start, data_start + stop)


@attrs.frozen
class FileLayout:
    """Where the tensors of a new file go: its header, and each tensor with its place in the file."""

    header: bytes
    tensors: tuple[Tensor, ...]

    @property
    def file_bytes(self) -> int:
        return self.tensors[-1].stop if self.tensors else len(self.header)


DATA_ALIGNMENT = 4096
"""Data starts at a page, so that it can be read with O_DIRECT."""
TENSOR_ALIGNMENT = 256
"""What CUDA's own allocator gives, so that a file's data can be used in place on a device."""


def lay_out_file(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> FileLayout:
    """A file of the tensors (name, dtype, shape), laid out for fast loading.

    Data starts at a multiple of 4 KiB (the header is padded with spaces, as the format allows). The format
    allows no gaps, so tensors of a multiple of 256 bytes come first, in the order given, and the odd-sized
    ones last, those of wider items before narrower ones so that every tensor is aligned to its items.
    """
    sized = [(name, dtype, shape, math.prod(shape) * ITEM_BYTES[dtype]) for name, dtype, shape in tensors]
    even = [entry for entry in sized if entry[3] % TENSOR_ALIGNMENT == 0]
    odd = sorted((e for e in sized if e[3] % TENSOR_ALIGNMENT), key=lambda e: -ITEM_BYTES[e[1]])
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position, places = 0, []
    for name, dtype, shape, size in even + odd:
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        places.append((name, dtype, shape, position, position + size))
        position += size
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    base = 8 + len(text)
    return FileLayout(
        header=struct.pack("<Q", len(text)) + text,
        tensors=tuple(Tensor(n, d, s, base + start, base + stop) for n, d, s, start, stop in places),
    )
