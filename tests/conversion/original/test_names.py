"""Names: every tensor of the true models has one in each layout, and nothing else has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conversion.original.layout import LARGE, SMALL, TRUE_VAE, UMT5_XXL, original_name
from wanstore.building._skeleton import expected_tensors
from wanstore.conversion.original._names import new_name


def both(module: str) -> Iterator[str]:
    yield f"{module}.weight"
    yield f"{module}.bias"


def transformer_names(layers: int) -> Iterator[str]:
    """As the publisher's `wan/modules/model.py` has them."""
    for module in ("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"):
        yield from both(module)
    yield from both("time_projection.1")
    for layer in range(layers):
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                yield from both(f"blocks.{layer}.{attention}.{part}")
            yield f"blocks.{layer}.{attention}.norm_q.weight"
            yield f"blocks.{layer}.{attention}.norm_k.weight"
        for part in ("norm3", "ffn.0", "ffn.2"):
            yield from both(f"blocks.{layer}.{part}")
        yield f"blocks.{layer}.modulation"
    yield from both("head.head")
    yield "head.modulation"


def text_encoder_names() -> Iterator[str]:
    """As `wan/modules/t5.py` has them."""
    yield "token_embedding.weight"
    for layer in range(24):
        for part in ("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"):
            yield f"blocks.{layer}.{part}.weight"
        yield f"blocks.{layer}.pos_embedding.embedding.weight"
    yield "norm.weight"


def vae_names() -> Iterator[str]:
    """As `wan/modules/vae.py` has them."""
    yield from both("conv1")
    yield from both("conv2")
    for half, row, resamples, widening in (
        ("encoder", "encoder.downsamples", {2: False, 5: True, 8: True}, {3, 6}),
        ("decoder", "decoder.upsamples", {3: True, 7: True, 11: False}, {4}),
    ):
        yield from both(f"{half}.conv1")
        blocks = [f"{half}.middle.0", f"{half}.middle.2"]
        for number in range(11 if half == "encoder" else 15):
            if number in resamples:
                yield from both(f"{row}.{number}.resample.1")
                yield from both(f"{row}.{number}.time_conv") if resamples[number] else ()
            else:
                blocks.append(f"{row}.{number}")
                yield from both(f"{row}.{number}.shortcut") if number in widening else ()
        for block in blocks:
            yield f"{block}.residual.0.gamma"
            yield from both(f"{block}.residual.2")
            yield f"{block}.residual.3.gamma"
            yield from both(f"{block}.residual.6")
        yield f"{half}.middle.1.norm.gamma"
        yield from both(f"{half}.middle.1.to_qkv")
        yield from both(f"{half}.middle.1.proj")
        yield f"{half}.head.0.gamma"
        yield from both(f"{half}.head.2")


@pytest.mark.parametrize(
    ("component", "config", "originals", "count"),
    [
        ("transformer", SMALL, list(transformer_names(30)), 825),
        ("transformer", LARGE, list(transformer_names(40)), 1095),
        ("text_encoder", UMT5_XXL, list(text_encoder_names()), 242),
        ("vae", TRUE_VAE, list(vae_names()), 194),
    ],
    ids=["1.3B", "14B", "umt5-xxl", "vae"],
)
def test_every_tensor_of_the_true_models_has_one_name_in_each_layout(
    component: str, config: dict[str, Any], originals: list[str], count: int
) -> None:
    """The publisher's names become just those that diffusers' and transformers' classes want, and back."""
    new = [new_name(component, original) for original in originals]
    assert len(originals) == count and sorted(map(str, new)) == sorted(expected_tensors(component, config))
    assert [original_name(component, str(name)) for name in new] == originals


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("transformer", "blocks.0.attn1.to_q.weight"),
        ("transformer", "blocks.00.norm3.weight"),
        ("transformer", "blocks.#.norm3.weight"),
        ("transformer", "blocks.٣.norm3.weight"),
        ("transformer", "blocks.0.norm3.weight\n"),
        ("transformer", "head.head.weight.weight"),
        ("text_encoder", "pos_embedding.embedding.weight"),
        ("vae", "decoder.upsamples.15.residual.0.gamma"),
        ("vae", "decoder.upsamples.03.time_conv.bias"),
        ("vae", ""),
    ],
)
def test_any_other_name_is_none(component: str, name: str) -> None:
    """Names of the other layout, numbers written in another way, and parts that no model has."""
    assert new_name(component, name) is None
