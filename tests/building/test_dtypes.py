"""Components that compute in float32: which may be asked for, and in every life of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wanstore import activate
from wanstore.building._dtypes import check_dtypes
from wanstore.errors import NotSupportedError
from wanstore.loading._load import load_folder as load

MODELS = ("text_encoder", "transformer", "vae")


def assert_same_weights(ours: Any, theirs: Any) -> None:
    """By name: dtypes, strides and values."""
    for name in MODELS:
        held, wanted = (dict(getattr(pipe, name).state_dict()) for pipe in (ours, theirs))
        assert list(held) == list(wanted)
        for key, tensor in wanted.items():
            assert (held[key].dtype, held[key].stride()) == (tensor.dtype, tensor.stride()), (name, key)
            assert torch.equal(held[key].cpu(), tensor), (name, key)


def test_names_and_torchs_own_dtypes_mean_the_same() -> None:
    """Only what differs from float16 is kept: it is by this that two choices are the same."""
    asked = {"vae": torch.float32, "transformer": "float16", "text_encoder": "float32"}
    assert list(check_dtypes(asked).items()) == [("text_encoder", "float32"), ("vae", "float32")]
    assert check_dtypes(None) == check_dtypes({}) == check_dtypes({"vae": torch.float16}) == {}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"vae": "bfloat16"}, "vae can't compute in bfloat16. Choose float16 or float32"),
        ({"vae": torch.float64}, "vae can't compute in float64"),
        ({"tokenizer": "float32"}, "'tokenizer' that has weights. Choose from transformer, text_encoder, vae"),
        ({"default": "float16"}, "no component 'default'"),
        (torch.float32, "not a dtype by component"),
        ("float32", "not a dtype by component"),
    ],
)
def test_another_component_or_dtype_is_refused(tiny_sealed: Path, asked: Any, told: str) -> None:
    """With what is allowed."""
    with pytest.raises(NotSupportedError, match=told):
        load(tiny_sealed, device="cpu", dtype=asked)


@pytest.mark.parametrize("weights", ["resident", "deferred"])
@pytest.mark.parametrize("component", MODELS)
def test_activation_keeps_the_choice(tiny_sealed: Path, component: str, weights: Any) -> None:
    """It is not asked again; a skeleton without weights tells it already."""
    dtype = {component: "float32"}
    pipe = load(tiny_sealed, device="cpu", weights=weights, dtype=dtype)
    assert all(parameter.dtype == torch.float32 for parameter in getattr(pipe, component).parameters())
    assert_same_weights(activate(pipe, "cpu"), load(tiny_sealed, device="cpu", dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("component", MODELS)
def test_on_a_gpu_every_bit_is_the_cpus(tiny_sealed: Path, component: str) -> None:
    """Straight there, or by way of either snapshot."""
    dtype = {component: "float32"}
    on_cpu = load(tiny_sealed, device="cpu", dtype=dtype)
    assert_same_weights(load(tiny_sealed, device="cuda", dtype=dtype), on_cpu)
    assert_same_weights(activate(load(tiny_sealed, weights="deferred", dtype=dtype), "cuda"), on_cpu)
    assert_same_weights(activate(load(tiny_sealed, device="cpu", dtype=dtype), "cuda"), on_cpu)
