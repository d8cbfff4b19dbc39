"""Helpers for files: hash them, list them, force them to the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_BLOCK_BYTES = 4 << 20


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in blocks; `advance` receives the size of each block."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            if advance:
                advance(count)
    return digest.hexdigest()


def files_below(folder: Path) -> dict[str, os.stat_result]:
    """Everything below `folder` that is not a directory, by its relative path. Links are not followed."""
    found = {}
    for directory, names, files in os.walk(folder):
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for name in files + links:
            path = os.path.join(directory, name)
            found[Path(path).relative_to(folder).as_posix()] = os.lstat(path)
    return found


def sync_tree(folder: Path) -> None:
    """Force every file and directory below `folder` to the disk, the folder itself last."""
    for directory, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(directory, name))
        sync(Path(directory))


def sync(path: Path) -> None:
    """Force one file's data, or one directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
