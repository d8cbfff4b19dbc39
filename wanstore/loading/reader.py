"""From safetensors files to tensors in the process's own memory, or in a device's.

No file stays mapped: a mapping outlives neither a memory snapshot nor the file's replacement (a restored
process would silently see the new file's bytes), so bytes are read into memory that torch owns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import torch

from wanstore.errors import DamagedError
from wanstore.loading.weight_files import WeightFile, opened
from wanstore.safetensors_format import TENSOR_ALIGNMENT, Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_THREADS = 16
_PIECE_BYTES = 16 << 20
"""16 threads with pieces of 4 to 16 MiB read page cache fastest."""


@attrs.frozen
class _Run:
    """Neighbouring tensors that are read into one buffer.

    Within a run all keep their dtype or all are cast, so a buffer is used whole or dropped whole. Each starts
    at a multiple of 256 bytes, as in memory that torch allocates: kernels are chosen by alignment.
    """

    tensors: tuple[Tensor, ...]
    buffer: torch.Tensor

    @property
    def start(self) -> int:
        return self.tensors[0].start


def read_tensors(
    file: WeightFile,
    device: torch.device,
    narrow: torch.dtype,
    is_wide: Callable[[str], bool],
    advance: Callable[[int], None],
) -> dict[str, torch.Tensor]:
    """The tensors of `file` on `device`, by name.

    Floating-point ones are cast to `narrow`, those whose name `is_wide` to float32; others stay as they are.
    A device gets the bytes as stored and casts them itself. `advance` hears of bytes read, from any thread.
    Raises `DamagedError` naming file and tensor when the file ends early or can't be read.
    """

    def final(tensor: Tensor) -> torch.dtype:
        stored = _DTYPES[tensor.dtype]
        if not stored.is_floating_point:
            return stored
        return torch.float32 if is_wide(tensor.name) else narrow

    runs = list(_runs(file.tensors, lambda tensor: final(tensor) is _DTYPES[tensor.dtype]))
    _fill(file, runs, advance)
    tensors = {}
    while runs:  # a run's bytes on the host are dropped before the next run's are moved
        run = runs.pop(0)
        held = run.buffer.to(device)
        for tensor in run.tensors:
            data = held[tensor.start - run.start : tensor.stop - run.start]
            tensors[tensor.name] = data.view(_DTYPES[tensor.dtype]).view(tensor.shape).to(final(tensor))
    return tensors


def _runs(tensors: tuple[Tensor, ...], keeps: Callable[[Tensor], bool]) -> Iterator[_Run]:
    run: list[Tensor] = []
    for tensor in tensors:
        if run and (keeps(tensor) != keeps(run[0]) or (tensor.start - run[0].start) % TENSOR_ALIGNMENT):
            yield _run(run)
            run = []
        run.append(tensor)
    if run:
        yield _run(run)


def _run(tensors: list[Tensor]) -> _Run:
    size = tensors[-1].stop - tensors[0].start
    return _Run(tuple(tensors), torch.empty(size, dtype=torch.uint8, device="cpu"))


def _fill(file: WeightFile, runs: list[_Run], advance: Callable[[int], None]) -> None:
    def read(piece: tuple[int, memoryview]) -> None:
        position, view = piece
        while view:
            try:
                count = os.preadv(descriptor, [view], position)
            except OSError as error:
                raise _fault(file, position, f"cannot be read ({error.strerror})") from error
            if count == 0:
                raise _fault(file, position, "is cut off: the file became shorter while it was read")
            position, view = position + count, view[count:]
            advance(count)

    # The pool is left before the file is closed: no thread reads from a descriptor that is another file's by then.
    with opened(file.path) as descriptor, ThreadPoolExecutor(_THREADS, "wanstore-read") as pool:
        for _ in pool.map(read, _pieces(runs)):
            pass


def _pieces(runs: list[_Run]) -> Iterator[tuple[int, memoryview]]:
    for run in runs:
        view = run.buffer.numpy().data
        for begin in range(0, len(view), _PIECE_BYTES):
            yield run.start + begin, view[begin : begin + _PIECE_BYTES]


def _fault(file: WeightFile, position: int, what: str) -> DamagedError:
    name = next(tensor.name for tensor in file.tensors if tensor.stop > position)
    return DamagedError(f"{file.path}: tensor {name} {what}", "Run setup again with --replace")
