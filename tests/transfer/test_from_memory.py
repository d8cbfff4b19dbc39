"""Tensors moved by whole storages are the same ones, sharing what they shared."""

from __future__ import annotations

import pytest
import torch

from wanstore.transfer import _transfer as transfer
from wanstore.transfer._from_memory import MemoryTransfer

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_each_tensor_arrives_with_its_shape_and_strides(device: str) -> None:
    """Views, transposed ones and single numbers as well; the originals stay as they were."""
    base = torch.arange(600.0).reshape(20, 30)
    tensors = {
        "whole": base, "turned": base.T, "part": base[3:9, 4:20], "half": torch.randn(7, 5).half(),
        "one": torch.tensor(1.5), "none": torch.zeros(0, 3),
    }  # fmt: skip
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with MemoryTransfer(tensors, torch.device(device)) as move:
        moved = move.tensors()
    for name, tensor in tensors.items():
        there = moved[name]
        assert (there.device.type, there.dtype, there.stride()) == (device, tensor.dtype, tensor.stride())
        assert torch.equal(there.cpu(), before[name]) and torch.equal(tensor, before[name])
        assert not tensor.numel() or there.data_ptr() != tensor.data_ptr()
    assert moved["part"].untyped_storage().data_ptr() == moved["whole"].untyped_storage().data_ptr()
    moved["whole"].zero_()
    assert moved["turned"].count_nonzero() == 0


def test_a_move_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells of it where it is waited for."""
    import threading

    from wanstore.errors import DeviceMemoryError

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no slot")

    monkeypatch.setattr(transfer, "_allocate", fail)
    with pytest.raises(DeviceMemoryError), MemoryTransfer({"x": torch.ones(5)}, torch.device("cpu")) as move:
        move.tensors()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wanstore-")]
