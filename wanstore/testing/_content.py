"""The content store behind a Hub on 127.0.0.1: files cut up into chunks, chunks packed into xorbs, as Xet does it.

`hf_xet` itself cuts and packs, into a folder. Read here is what it wrote: shards, which say of what each file is made,
and xorbs. Both formats are Hugging Face's: https://huggingface.co/docs/xet.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import attrs

_CHUNK_VERSION = 0
_CHUNK_HEADER_BYTES = 8
_SHARD_HEADER_BYTES = 48
_ENTRY_BYTES = 48
_LAST_FILE = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


@attrs.frozen
class Term:
    """A run of a file's bytes: the chunks from `start` to `stop` of one xorb."""

    xorb: str
    start: int
    stop: int


@attrs.frozen
class Xorb:
    """Where each chunk begins, packed in the file and unpacked; a last entry is the end."""

    file: Path
    offsets: tuple[int, ...]
    unpacked: tuple[int, ...]


class ContentStore:
    """Xorbs below `folder`, and the files that are made of them, by their hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, list[Term]] = {}
        self._xorbs: dict[str, Xorb] = {}

    def add(self, file: Path) -> str:
        """Take a file in; its Xet hash."""
        import hf_xet

        with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{self._folder}") as commit:
            upload = commit.start_upload_file(str(file))
        for shard in self._folder.rglob("shards/*.mdb"):
            self._files.update(_files_of(shard.read_bytes()))
        for xorb in self._folder.rglob("xorbs/default.*"):
            name = xorb.name.removeprefix("default.")
            if xorb.suffix != ".tagset" and name not in self._xorbs:
                self._xorbs[name] = _read_xorb(xorb)
        return str(upload.result().xet_info.hash)

    def xorb(self, name: str) -> Xorb:
        """The xorb of that hash. Raises `KeyError`."""
        return self._xorbs[name]

    def reconstruction(self, file: str, start: int, stop: int | None) -> tuple[int, list[tuple[Term, int]]]:
        """What the bytes from `start` to `stop` of a file are made of, each term with the bytes it unpacks to.

        Whole chunks, so the first number is how many bytes of the first term are before `start`. Without any terms
        the file is shorter. Raises `KeyError`.
        """
        position, skip = 0, 0
        terms: list[tuple[Term, int]] = []
        for term in self._files[file]:
            unpacked = self.xorb(term.xorb).unpacked
            origin = unpacked[term.start] - position  # where the file would begin in what the xorb unpacks to
            position = unpacked[term.stop] - origin
            if position <= start or (stop is not None and unpacked[term.start] - origin >= stop):
                continue
            first = max(term.start, bisect_right(unpacked, start + origin) - 1)
            last = term.stop if stop is None else min(term.stop, bisect_right(unpacked, stop - 1 + origin))
            if not terms:
                skip = start + origin - unpacked[first]
            terms.append((Term(term.xorb, first, last), unpacked[last] - unpacked[first]))
        return skip, terms

    def answer(
        self, version: str, skip: int, terms: list[tuple[Term, int]], url: Callable[[str], str]
    ) -> dict[str, Any]:
        """What `reconstruction` found, as JSON of that API version; `url` gives the address of a xorb."""
        places: dict[str, list[dict[str, Any]]] = {}
        for run in _merged(term for term, _ in terms):
            offsets = self.xorb(run.xorb).offsets
            chunks = {"start": run.start, "end": run.stop}
            part = {"start": offsets[run.start], "end": offsets[run.stop] - 1}
            place = (
                {"range": chunks, "url": url(run.xorb), "url_range": part}
                if version == "v1"
                else {"url": url(run.xorb), "ranges": [{"chunks": chunks, "bytes": part}]}
            )
            places.setdefault(run.xorb, []).append(place)
        return {
            "offset_into_first_range": skip,
            "terms": [
                {"hash": term.xorb, "unpacked_length": size, "range": {"start": term.start, "end": term.stop}}
                for term, size in terms
            ],
            ("fetch_info" if version == "v1" else "xorbs"): places,
        }


def _merged(terms: Iterable[Term]) -> list[Term]:
    """Runs of chunks that touch or overlap made one: a client tells those of a xorb apart by where they begin."""
    merged: list[Term] = []
    for term in sorted(terms, key=lambda term: (term.xorb, term.start)):
        if merged and merged[-1].xorb == term.xorb and term.start <= merged[-1].stop:
            merged[-1] = attrs.evolve(merged[-1], stop=max(merged[-1].stop, term.stop))
        else:
            merged.append(term)
    return merged


def _files_of(shard: bytes) -> Iterator[tuple[str, list[Term]]]:
    position = _SHARD_HEADER_BYTES
    while shard[position : position + 32] != _LAST_FILE:
        name = _hex(shard[position : position + 32])
        flags, count = struct.unpack_from("<II", shard, position + 32)
        position += _ENTRY_BYTES
        terms = []
        for entry in range(position, position + count * _ENTRY_BYTES, _ENTRY_BYTES):
            start, stop = struct.unpack_from("<II", shard, entry + 40)
            terms.append(Term(_hex(shard[entry : entry + 32]), start, stop))
        yield name, terms
        more = count * bool(flags & _WITH_VERIFICATION) + bool(flags & _WITH_METADATA)
        position += (count + more) * _ENTRY_BYTES


def _read_xorb(path: Path) -> Xorb:
    """The chunks of a xorb: each has a header of 8 bytes, and after the last comes a footer, which begins otherwise."""
    packed, unpacked, position = [], [], 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while position < len(data) and data[position] == _CHUNK_VERSION:
            size = int.from_bytes(data[position + 1 : position + 4], "little")
            packed.append(_CHUNK_HEADER_BYTES + size)
            unpacked.append(int.from_bytes(data[position + 5 : position + 8], "little"))
            position += packed[-1]
    return Xorb(path, tuple(accumulate(packed, initial=0)), tuple(accumulate(unpacked, initial=0)))


def _hex(value: bytes) -> str:
    """How Xet writes a hash: four numbers, each from its last byte to its first."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))
