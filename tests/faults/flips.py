"""Single flipped bits in what is stored: each is noticed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.faults.tally import Tally
from wanstore.errors import DamagedError, NotSupportedError
from wanstore.manifest import MANIFEST_NAME, parse_manifest
from wanstore.stores.local import LocalStore


def flips(stored: Path, folder: Path, tally: Tally, *, in_files: int, in_manifest: int | None) -> None:
    """Flip bits of the pipeline `w` in the store `stored`: so many in its files, and in its manifest; None is all."""
    root = folder / "flipped"
    shutil.copytree(stored, root)
    store, chance = LocalStore(root), random.Random(0)
    manifest = store.manifest("w")
    for _ in range(in_files):
        entry = chance.choice([one for one in manifest.files if one.size_bytes])
        path, bit = root / "w" / entry.path, chance.randrange(entry.size_bytes * 8)
        _flip(path, bit)
        tally.tried("a flipped bit in a file")
        if store.verify("w").damaged != (entry.path,):
            tally.failed("a flipped bit in a file", f"{entry.path}, bit {bit}")
        _flip(path, bit)
    data = (root / "w" / MANIFEST_NAME).read_bytes()
    bits = range(len(data) * 8)
    for bit in bits if in_manifest is None else chance.sample(bits, in_manifest):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        tally.tried("a flipped bit in the manifest")
        try:
            parse_manifest(bytes(flipped), "it", "w")
        except (DamagedError, NotSupportedError):
            continue
        tally.failed("a flipped bit in the manifest", f"bit {bit}")
    shutil.rmtree(root)


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
