"""What this machine can move at best, in GB/s: the bounds that loads are held against.

python benchmarks/ceilings.py FILE [FILE ...]    # large files; answers with JSON on its last line
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path

from page_cache import fill

THREADS = 16
PIECE_BYTES = 16 << 20
PINNED_BYTES = 1 << 30
SECONDS = 3.0
"""Longest for a reading of the disk."""


def host_to_device() -> float:
    """From pinned memory to the GPU, the best of three."""
    import torch

    pinned = torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    on_device = torch.empty(PINNED_BYTES, dtype=torch.uint8, device="cuda")

    def copy() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for start in range(0, PINNED_BYTES, PIECE_BYTES):
            on_device[start : start + PIECE_BYTES].copy_(pinned[start : start + PIECE_BYTES], non_blocking=True)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    return PINNED_BYTES / min(copy() for _ in range(3)) / 1e9


def read(files: list[Path], *, direct: bool) -> float:
    """Into memory that is there already, by several threads; past the page cache with `direct`."""
    places = [(file, start) for file in files for start in range(0, file.stat().st_size - PIECE_BYTES, PIECE_BYTES)]
    if not places:
        raise ValueError(f"No file of more than {PIECE_BYTES} bytes")
    rooms = [mmap.mmap(-1, PIECE_BYTES) for _ in range(THREADS)]
    for room in rooms:
        room.write(bytes(PIECE_BYTES))
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    descriptors = {file: os.open(file, flags) for file in files}
    turns = itertools.count()
    counts = [0] * THREADS
    began = time.perf_counter()

    def work(number: int) -> None:
        while (turn := next(turns)) < len(places) and time.perf_counter() - began < SECONDS:
            file, start = places[turn]
            counts[number] += os.preadv(descriptors[file], [rooms[number]], start)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for descriptor in descriptors.values():
        os.close(descriptor)
    return sum(counts) / seconds / 1e9


def measure(files: list[Path]) -> dict[str, float | str]:
    fill(files)
    ways = {
        "pinned memory to device": host_to_device,
        f"page cache to memory, {THREADS} threads": lambda: max(read(files, direct=False) for _ in range(2)),
        f"disk to memory, O_DIRECT, {THREADS} threads": lambda: read(files, direct=True),
    }
    found: dict[str, float | str] = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except Exception as error:  # noqa: BLE001  no GPU, or no O_DIRECT: the others are still of use
            found[name] = str(error).splitlines()[0]
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(measure([Path(file) for file in sys.argv[1:]])))
