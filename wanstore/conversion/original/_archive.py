"""Where a file that `torch.save` wrote has its tensors: a zip archive of uncompressed records, one for each storage.

It is known from the two ends of the file. At the beginning is the pickle, at the end the directory of records.
"""

from __future__ import annotations

import io
import math
import os
import reprlib
import struct
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import attrs

from wanstore._formats._safetensors import ITEM_BYTES, HeaderError, Tensor
from wanstore.conversion.original._state_dict import View, read_state_dict

END_BYTES = 256 << 10
"""Of each end: four times as much as the pickle or the directory of the published files."""
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_MAX_PADDING_BYTES = 0xFFFF
_DESCRIPTOR_FLAG = 8
_DESCRIPTOR_BYTES = (16, 24)
"""What follows a record's data where the flag says so: its checksum and sizes, in the narrow and in the wide form."""


@attrs.frozen
class Record:
    """One record of the archive: where its own header is, and its data. `name` is its whole name."""

    name: str
    header: int
    start: int
    stop: int


@attrs.frozen
class Archive:
    """The tensors of a file, by where their bytes lie, and the records that hold them."""

    tensors: tuple[Tensor, ...]
    records: tuple[Record, ...]


def read_archive(head: bytes, tail: bytes, file_bytes: int) -> Archive:
    """The tensors of a file of `file_bytes`, given its first and last `END_BYTES`.

    Raises `HeaderError` unless they are contiguous tensors of floats, each with bytes of its own.
    """
    if not head.startswith(b"PK\3\4"):
        raise HeaderError("it is no zip archive, as torch.save writes since torch 1.6")
    try:
        with zipfile.ZipFile(_Ends(head, tail, file_bytes)) as archive:
            records = _records(archive)
            pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise HeaderError("it has no data.pkl, so torch.save did not write it")
            folder = pickles[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in records and archive.read(order) != b"little":
                raise HeaderError("its numbers are not little-endian")
            views = read_state_dict(archive.read(pickles[0]))
    except HeaderError:
        raise
    # What zipfile raises when sizes, offsets or flags make no sense; NotImplementedError is a RuntimeError.
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OverflowError, struct.error) as error:
        raise HeaderError("it is truncated, or not as torch.save writes it") from error
    tensors = [_tensor(name, view, records, folder) for name, view in views.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    for before, tensor in pairwise(tensors):
        if tensor.start < before.stop:
            raise HeaderError(f"{tensor.name} shares its bytes with {before.name}")
    used = {f"{folder}data/{view.storage.key}" for view in views.values()}
    return Archive(tuple(tensors), tuple(records[name] for name in sorted(used)))


def check_records(path: Path, archive: Archive) -> None:
    """Raise `HeaderError` unless each record of the whole file is where the ends of it let expect it."""
    with path.open("rb", buffering=0) as file:
        for record in archive.records:
            header = os.pread(file.fileno(), record.start - record.header, record.header)
            name = record.name.encode()
            lengths = struct.pack("<HH", len(name), record.start - record.header - _LOCAL_HEADER_BYTES - len(name))
            if not (header.startswith(b"PK\3\4") and header[26:].startswith(lengths + name)):
                raise HeaderError(f"its record {reprlib.repr(record.name)} is not where its directory says")


def _records(archive: zipfile.ZipFile) -> dict[str, Record]:
    """The archive's records, by name. One record begins where the one before it ends."""
    found = sorted(archive.infolist(), key=lambda info: info.header_offset)
    ends = [info.header_offset for info in found[1:]] + [archive.start_dir]
    records = {}
    for info, end in zip(found, ends, strict=True):
        if info.filename in records:
            raise HeaderError(f"its record {reprlib.repr(info.filename)} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise HeaderError(f"its record {reprlib.repr(info.filename)} is compressed")
        after = _DESCRIPTOR_BYTES if info.flag_bits & _DESCRIPTOR_FLAG else (0,)
        starts = [end - size - info.file_size for size in after]
        first = info.header_offset + _LOCAL_HEADER_BYTES + len(info.filename.encode())
        start = next((s for s in starts if first <= s <= first + _MAX_PADDING_BYTES and s % _ALIGNMENT == 0), None)
        if start is None:
            raise HeaderError(f"its record {reprlib.repr(info.filename)} is not where torch.save puts it")
        records[info.filename] = Record(info.filename, info.header_offset, start, start + info.file_size)
    return records


def _tensor(name: str, view: View, records: Mapping[str, Record], folder: str) -> Tensor:
    storage, item = view.storage, ITEM_BYTES[view.storage.dtype]
    record = records.get(f"{folder}data/{storage.key}")
    if record is None or record.stop - record.start != storage.elements * item:
        raise HeaderError(f"{name} has no record of {storage.elements} numbers in it")
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != expected:
            raise HeaderError(f"{name} is not contiguous")
        expected *= size
    elements = math.prod(view.shape)
    if view.offset + elements > storage.elements:
        raise HeaderError(f"{name} is larger than its storage")
    start = record.start + view.offset * item
    return Tensor(name, storage.dtype, view.shape, start, start + elements * item)


class _Ends(io.RawIOBase):
    """A file of which only the two ends are at hand, for `zipfile`. Whoever reads elsewhere gets a `HeaderError`."""

    def __init__(self, head: bytes, tail: bytes, file_bytes: int) -> None:
        self._head, self._tail, self._bytes = head, tail, file_bytes
        self._at = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._bytes}[whence]
        if self._at < 0:
            raise ValueError("before the beginning")
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        start = min(self._at, self._bytes)
        stop = self._bytes if size is None or size < 0 else min(start + size, self._bytes)
        self._at = stop
        tail_starts = self._bytes - len(self._tail)
        if stop <= len(self._head):
            return self._head[start:stop]
        if start >= tail_starts:
            return self._tail[start - tail_starts : stop - tail_starts]
        raise HeaderError("it has more than weights and their names")
