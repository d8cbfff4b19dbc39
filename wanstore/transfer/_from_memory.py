"""Tensors from this process's memory to a device: whole storages at a time, as quickly as from files."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import torch

from wanstore.transfer._layout import lay_out_buffers
from wanstore.transfer._readers import MemoryReader
from wanstore.transfer._transfer import Transfer


class MemoryTransfer:
    """Tensors on their way to a device. Leaving the block ends the transfer, finished or not.

    Tensors that share a storage still do afterwards.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors.values()}
        arrays = [torch.empty(0, dtype=torch.uint8).set_(storage).numpy() for storage in storages.values()]
        self._order = list(storages)
        self.transfer = Transfer(MemoryReader(arrays), lay_out_buffers([len(array) for array in arrays]), device)

    def __enter__(self) -> Self:
        self.transfer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.transfer.__exit__(kind, error, traceback)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors on the device, once all are there. Raises what `Transfer.buffers` raises."""
        moved = dict(zip(self._order, self.transfer.buffers(), strict=True))
        return {name: self._there(tensor, moved) for name, tensor in self._tensors.items()}

    def _there(self, tensor: torch.Tensor, moved: Mapping[int, torch.Tensor]) -> torch.Tensor:
        storage = moved[tensor.untyped_storage().data_ptr()].untyped_storage()
        whole = torch.empty(0, dtype=tensor.dtype, device=self._device)
        return whole.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
