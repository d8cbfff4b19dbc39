"""What the machine can move at best, measured the way a load moves it: many threads, chunks, pinned memory."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from wanstore.transfer._layout import CHUNK_BYTES
from wanstore.transfer._page_cache import cached_spans
from wanstore.transfer._read_queue import THREADS
from wanstore.transfer._record import TransferRecord

_PASSES = 8
_COPIED_BYTES = 2 << 30


@attrs.frozen
class Ceilings:
    """Bytes a second, 0 where it can't be measured: page cache to memory, disk to memory, pinned memory to a GPU."""

    page_cache: float
    disk: float
    pcie: float

    def best_of(self, transfer: TransferRecord, device: str) -> tuple[str, float]:
        """What bounds a transfer like this one on this machine, and the bytes a second that it allows."""
        known = {"disk": self.disk if transfer.came_from_disk else 0.0}
        known |= {"page cache": self.page_cache, "PCIe": self.pcie if device.startswith("cuda") else 0.0}
        return min(((name, rate) for name, rate in known.items() if rate), key=lambda item: item[1])


def measure_ceilings(file: Path) -> Ceilings:
    """Read `file`, of some hundred MiB and written to disk, again and again; copy to a GPU where there is one."""
    return Ceilings(_page_cache(file), _disk(file), _pcie())


def _page_cache(file: Path) -> float:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        _read(descriptor, 1)  # now it is there
        return _rate(lambda: _read(descriptor, _PASSES))
    finally:
        os.close(descriptor)


def _disk(file: Path) -> float:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return 0.0
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if any(cached_spans(descriptor, [(0, file.stat().st_size)])):
            return 0.0  # a file system in memory
        return _rate(lambda: _read(descriptor, 1))
    except OSError:
        return 0.0
    finally:
        os.close(descriptor)


def _read(descriptor: int, passes: int) -> int:
    size = os.fstat(descriptor).st_size
    starts = [start for _ in range(passes) for start in range(0, size, CHUNK_BYTES)]

    def read(thread: int) -> int:
        with mmap.mmap(-1, CHUNK_BYTES) as room:
            return sum(os.preadv(descriptor, [room], start) for start in starts[thread::THREADS])

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(read, range(THREADS)))


def _pcie() -> float:
    import torch

    if not torch.cuda.is_available():
        return 0.0
    held = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(held, device="cuda")

    def copy() -> int:
        for _ in range(_COPIED_BYTES // len(held)):
            target.copy_(held, non_blocking=True)
        torch.cuda.synchronize()
        return _COPIED_BYTES

    copy()
    return _rate(copy)


def _rate(move: Callable[[], int]) -> float:
    began = time.perf_counter()
    moved = move()
    return moved / (time.perf_counter() - began)
