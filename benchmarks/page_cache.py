"""What of a file is in page cache, and how to get it in or out."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 16 << 20


def share_cached(paths: Iterable[str | Path]) -> float:
    """The share of the files' pages that is in page cache."""
    import numpy as np

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    cached = pages = 0
    for path in paths:
        mapped = np.memmap(path, np.uint8, "r")
        answer = np.empty(-(-mapped.size // mmap.PAGESIZE), np.uint8)
        if libc.mincore(mapped.ctypes.data, mapped.size, answer.ctypes.data):
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        cached, pages = cached + int((answer & 1).sum()), pages + answer.size
    return cached / pages


def fill(paths: Iterable[str | Path]) -> None:
    """Read the files through the page cache, several at once."""

    def read(path: str | Path) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        with Path(path).open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, paths))


def drop(paths: Iterable[str | Path]) -> None:
    """Get the files out of the page cache; only clean pages leave, so they are written out first."""
    for path in paths:
        with Path(path).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
