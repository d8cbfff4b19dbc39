"""Volumes as folders: what they hold can be read, and damaged, as plain files."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import attrs

from wanstore.stores._atomic_swap import swap

BLOCK_BYTES = 8 << 20
_MOST_OPENED = 64
"""Files that are read at once, at the most: an older one is closed."""


@attrs.define
class Link:
    """What all Volumes are reached over: with a rate each transfer takes its time. Modal's is 2.5e9 at most."""

    bytes_a_second: float | None = None

    def seconds(self, size_bytes: int) -> float:
        return size_bytes / self.bytes_a_second if self.bytes_a_second else 0.0


@attrs.frozen
class Volume:
    """One Volume: `folder` holds its files, `version` is 1 or 2. Whoever changes several files holds `lock`."""

    volume_id: str
    name: str
    version: int
    folder: Path
    link: Link = attrs.field(factory=Link, eq=False, repr=False)
    lock: threading.Lock = attrs.field(factory=threading.Lock, eq=False, repr=False)

    def path(self, inside: str) -> Path:
        """Where the path `inside` the Volume lies; raises `ValueError` when it leads out of it."""
        parts = [part for part in PurePosixPath(inside.lstrip("/")).parts if part != "."]
        if ".." in parts:
            raise ValueError(f"{inside} leads out of the volume")
        return self.folder.joinpath(*parts)

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def entries(self, inside: str, recursive: bool) -> Iterator[Path]:
        """What lies in a folder, or the one file at that path."""
        path = self.path(inside)
        if not path.exists():
            raise FileNotFoundError(inside)
        if path.is_file():
            yield path
        else:
            yield from sorted(path.rglob("*") if recursive else path.iterdir())

    def write(self, inside: str, chunks: Iterable[bytes]) -> None:
        """Write a file whole: it appears, or changes, in one step."""
        target = self.path(inside)
        draft = self.folder.parent / f"draft-{uuid.uuid4().hex}"
        with draft.open("wb") as file:
            file.writelines(chunks)
        with self.lock:  # the folder too: without, `changing` could exchange it for one that has no such folder
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(target)

    @contextmanager
    def changing(self) -> Iterator[Path]:
        """A copy of `folder` to change; readers see the whole change in one step, at the end of the block."""
        draft = self.folder.parent / f"draft-{uuid.uuid4().hex}"
        with self.lock:
            shutil.copytree(self.folder, draft, copy_function=os.link)
            yield draft
            swap(draft, self.folder)
        shutil.rmtree(draft)

    def remove(self, inside: str, recursive: bool) -> None:
        path = self.path(inside)
        with self.lock:
            if not path.is_dir():
                path.unlink()
            elif recursive:
                shutil.rmtree(path)
            else:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), inside)

    def copy(self, sources: Iterable[str], destination: str, recursive: bool) -> None:
        """Copy as `cp` does: into a folder that is there, else to that very path."""
        target = self.path(destination)
        with self.lock:
            for source in map(self.path, sources):
                place = target / source.name if target.is_dir() else target
                place.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir() and recursive:
                    shutil.copytree(source, place, dirs_exist_ok=True)
                else:
                    shutil.copyfile(source, place)


class Volumes:
    """All Volumes below one folder, the link that they share, and the blocks that were sent for them, by SHA-256."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blocks = root / "blocks"
        self._blocks.mkdir(parents=True)
        self._by_id: dict[str, Volume] = {}
        self._opened: OrderedDict[str, BinaryIO] = OrderedDict()
        self.link = Link()

    def create(self, name: str, version: int = 1) -> Volume:
        volume_id = f"vo-{uuid.uuid4().hex[:22]}"
        volume = Volume(volume_id, name, version, self._root / volume_id / "files", self.link)
        volume.folder.mkdir(parents=True)
        self._by_id[volume_id] = volume
        return volume

    def named(self, name: str) -> Volume | None:
        return next((volume for volume in self._by_id.values() if volume.name == name), None)

    def folder(self, name: str) -> Path:
        """The files of the Volume `name`."""
        volume = self.named(name)
        assert volume, f"there is no volume {name}"
        return volume.folder

    def get(self, volume_id: str) -> Volume:
        try:
            return self._by_id[volume_id]
        except KeyError:
            raise FileNotFoundError(f"volume {volume_id}") from None

    def all(self) -> list[Volume]:
        return list(self._by_id.values())

    def delete(self, volume_id: str) -> None:
        shutil.rmtree(self.get(volume_id).folder)
        del self._by_id[volume_id]

    def rename(self, volume_id: str, name: str) -> None:
        self._by_id[volume_id] = attrs.evolve(self.get(volume_id), name=name)

    def open(self, path: Path) -> tuple[str, int]:
        """A key and the size of a file that will be read: its contents as they are now, even if it is replaced."""
        key = uuid.uuid4().hex
        self._opened[key] = file = path.open("rb")
        if len(self._opened) > _MOST_OPENED:
            self._opened.popitem(last=False)[1].close()
        return key, os.fstat(file.fileno()).st_size

    def read(self, key: str, number: int) -> bytes:
        """A block of such a file."""
        return os.pread(self._opened[key].fileno(), BLOCK_BYTES, number * BLOCK_BYTES)

    def close(self) -> None:
        """Let go of what was opened."""
        while self._opened:
            self._opened.popitem()[1].close()

    def forget_blocks(self) -> None:
        """The next upload has to send everything."""
        for block in self._blocks.iterdir():
            block.unlink()

    def has_block(self, sha256: str) -> bool:
        return (self._blocks / sha256).is_file()

    def block(self, sha256: str) -> bytes:
        return (self._blocks / sha256).read_bytes()

    def add_block(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        (self._blocks / sha256).write_bytes(data)
        return sha256
