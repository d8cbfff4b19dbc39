"""Tensors that a source holds twice, under both names of a tie: they are stored once, if both are the same."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from wanstore.conversion._statistics import LARGEST
from wanstore.conversion._stream import FLOATS
from wanstore.errors import SourceError
from wanstore.interfaces import ConversionPlan, Progress

_BLOCK_ELEMENTS = 4 << 20


def check_copies(plan: ConversionPlan, target: Path, folder: Path, progress: Progress, *, clamp: bool) -> None:
    """Raise `SourceError` unless each copy of a tensor, cast to float16, is what was stored under its first name.

    A source that has copies is fetched into `folder` again where it has been dropped. Those that Wan-AI publishes have
    none.
    """
    places = {place.name: (shard.path, place) for shard in plan.shards for place in shard.layout.tensors}
    for path, copy, name in plan.copied_tensors:
        stored_path, stored = places[name]
        fetched = plan.source.fetch(path, folder, progress)
        same = copy.shape == stored.shape and copy.dtype in FLOATS
        with fetched.open("rb", buffering=0) as ours, (target / stored_path).open("rb", buffering=0) as theirs:
            for start in range(0, copy.elements if same else 0, _BLOCK_ELEMENTS):
                count = min(_BLOCK_ELEMENTS, copy.elements - start)
                values = _read(ours.fileno(), FLOATS[copy.dtype], copy.start, start, count)
                if clamp:
                    values = values.clamp(-LARGEST, LARGEST)
                kept = _read(theirs.fileno(), torch.float16, stored.start, start, count)
                if not torch.equal(values.to(torch.float16), kept):
                    same = False
                    break
        plan.source.release(path, fetched)
        if not same:
            raise SourceError(
                f"{path}: {copy.name} is not the same as {name}, though the model has one tensor of both names",
                "Fetch the source again, or use another revision",
            )


def _read(file: int, dtype: torch.dtype, start: int, element: int, count: int) -> torch.Tensor:
    data = os.pread(file, count * dtype.itemsize, start + element * dtype.itemsize)
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
