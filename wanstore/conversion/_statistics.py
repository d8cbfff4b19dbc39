"""What a cast to float16 does to a tensor, measured while its values are still in the cache."""

from __future__ import annotations

import math

import attrs
import numpy as np
import torch

from wanstore._formats._safetensors import Tensor
from wanstore.manifest import TensorRecord

LARGEST = 65504.0
"""The largest finite float16."""
PIECE_ELEMENTS = 1 << 18
"""Values handled at once: source, float16 and scratch of a piece stay in a core's own cache."""


@attrs.define
class TensorStatistics:
    """Running sums of one tensor; `record` turns them into the manifest's figures."""

    elements: int = 0
    not_finite: int = 0
    max_abs: float = 0.0
    overflows: int = 0
    flushed_to_zero: int = 0
    subnormals: int = 0
    max_error: float = 0.0
    squared_error: float = 0.0
    squared: float = 0.0

    def add(self, other: TensorStatistics) -> None:
        """Fold in the sums of another part of the same tensor."""
        self.elements += other.elements
        self.not_finite += other.not_finite
        self.overflows += other.overflows
        self.flushed_to_zero += other.flushed_to_zero
        self.subnormals += other.subnormals
        self.squared_error += other.squared_error
        self.squared += other.squared
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_error = max(self.max_error, other.max_error)

    def record(self, tensor: Tensor, stored_dtype: str) -> TensorRecord:
        count = max(self.elements, 1)
        return TensorRecord(
            name=tensor.name,
            source_dtype=tensor.dtype,
            stored_dtype=stored_dtype,
            shape=tensor.shape,
            max_abs=self.max_abs,
            overflows=self.overflows,
            flushed_to_zero=self.flushed_to_zero,
            subnormals=self.subnormals,
            max_error=self.max_error,
            rms_error=math.sqrt(self.squared_error / count),
            rms=math.sqrt(self.squared / count),
        )


class Float16Caster:
    """Casts pieces of up to `PIECE_ELEMENTS` values and folds their statistics. One for each thread."""

    def __init__(self, *, clamp: bool) -> None:
        self._clamp = clamp
        self._wide = torch.empty(PIECE_ELEMENTS)
        self._wider = torch.empty(PIECE_ELEMENTS, dtype=torch.float64)
        self._error = torch.empty(PIECE_ELEMENTS)
        self._bits = np.empty(PIECE_ELEMENTS, np.uint16)
        self._flags = np.empty(PIECE_ELEMENTS, np.bool_)

    def cast(self, source: torch.Tensor, target: torch.Tensor, sums: TensorStatistics) -> None:
        """Write `source` (float of any width) as float16 into `target`, rounding to nearest even."""
        count = source.numel()
        exact = self._widened(source)
        values = exact.numpy()
        largest = max(-float(values.min()), float(values.max()))
        sums.elements += count
        if not math.isfinite(largest):  # NaN passes through min and max, so this sees it too
            sums.not_finite += int((~torch.isfinite(exact)).sum())
            return
        sums.max_abs = max(sums.max_abs, largest)
        if largest > LARGEST:
            sums.overflows += int((exact.abs() > LARGEST).sum())
            if not self._clamp:
                return
            target.copy_(exact.clamp(-LARGEST, LARGEST))
        else:
            target.copy_(source)
        if source.dtype != torch.float16:
            self._measure_error(exact, target, sums)
        self._count_small(exact, target, sums)

    def _widened(self, source: torch.Tensor) -> torch.Tensor:
        if source.dtype in (torch.float32, torch.float64):
            return source
        return self._wide[: source.numel()].copy_(source)

    def _measure_error(self, exact: torch.Tensor, target: torch.Tensor, sums: TensorStatistics) -> None:
        scratch = self._wider if exact.dtype == torch.float64 else self._error
        error = scratch[: exact.numel()].copy_(target).sub_(exact)
        flat = error.numpy()
        sums.max_error = max(sums.max_error, -float(flat.min()), float(flat.max()))
        sums.squared_error += float(torch.dot(error, error))

    def _count_small(self, exact: torch.Tensor, target: torch.Tensor, sums: TensorStatistics) -> None:
        # On the 16-bit patterns, sign cleared: 0 is zero, 1 to 0x3ff are the subnormals (IEEE 754 binary16).
        count = exact.numel()
        sums.squared += float(torch.dot(exact, exact))
        bits = np.bitwise_and(target.view(torch.uint16).numpy(), 0x7FFF, out=self._bits[:count])
        nonzero = int(np.count_nonzero(bits))
        below = int(np.count_nonzero(np.less(bits, 0x0400, out=self._flags[:count])))
        sums.subnormals += below - (count - nonzero)
        if nonzero < count:
            sums.flushed_to_zero += int(torch.count_nonzero(exact)) - nonzero
