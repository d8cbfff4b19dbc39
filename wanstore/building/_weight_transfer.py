"""A pipeline's weights on their way from its files to a device, while other things are done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import attrs
import torch

from wanstore.building._dtypes import stays_float32
from wanstore.building._weight_files import Weights
from wanstore.components import COMPONENTS
from wanstore.interfaces import Progress
from wanstore.transfer._layout import DISK_CHUNK_BYTES, Chunk, lay_out_files
from wanstore.transfer._page_cache import cached_share
from wanstore.transfer._readers import FileReader, RangeSource, StreamReader
from wanstore.transfer._transfer import Transfer
from wanstore.transfer._weight_file import WeightFile


@attrs.frozen
class WeightTransfer:
    """Weights on their way to a device."""

    transfer: Transfer
    progress: Progress
    task: str

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Each component's tensors by name, once all are there. Raises what `Transfer.buffers` raises."""
        tensors = self.transfer.tensors()
        self.progress.finish(self.task)
        sorted_out: dict[str, dict[str, torch.Tensor]] = {component: {} for component in COMPONENTS}
        for name, tensor in tensors.items():
            component, _, leaf = name.partition("/")
            sorted_out[component][leaf] = tensor
        return sorted_out


@contextmanager
def transfer_weights(
    weights: Weights,
    device: str | torch.device | None,
    dtypes: Mapping[str, str],
    progress: Progress,
    name: str,
    *,
    through_cache: bool = False,
    source: RangeSource | None = None,
) -> Iterator[WeightTransfer]:
    """Begin to move all weights to `device`. What `from_pretrained` keeps in float32 is widened, the rest float16.

    Of a component that computes in float32, by `dtypes`, all is widened. `through_cache` is as for `FileReader`.
    With a `source` the files have nothing but their headers: see `StreamReader`.
    Leaving the block ends the transfer, finished or not.
    """
    files = [(component, file) for component, group in weights.items() for file in group]
    from_disk = not (through_cache or source) and cached_share([file.descriptor for _, file in files]) < 0.5
    layout = lay_out_files(
        [(f"{c}/", file.tensors, stays_float32(c, dtypes)) for c, file in files],
        DISK_CHUNK_BYTES if from_disk else None,
    )
    task = f"load {name}"
    progress.start(task, sum(file.size_bytes for _, file in files))
    opened = [file for _, file in files]
    reader = StreamReader(opened, source) if source else FileReader(opened, through_cache=through_cache)
    if source:
        layout = attrs.evolve(layout, chunks=_side_by_side(layout.chunks, opened))
    with Transfer(reader, layout, device, partial(progress.advance, task)) as transfer:
        yield WeightTransfer(transfer, progress, task)


def _side_by_side(chunks: Sequence[Chunk], files: Sequence[WeightFile]) -> tuple[Chunk, ...]:
    """The chunks of all files from beginnings to ends: each file is hashed in order, by one core at a time."""
    return tuple(sorted(chunks, key=lambda chunk: chunk.stop / files[chunk.file].size_bytes))
