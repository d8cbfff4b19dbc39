"""Configs are data: what does not describe shapes and numbers does not reach the libraries."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from wanstore.building._config import known_config
from wanstore.building._skeleton import build_skeleton
from wanstore.errors import DamagedError
from wanstore.testing.tiny_wan import SCHEDULER, TEXT_ENCODER, TRANSFORMER, VAE

CONFIGS: dict[str, dict[str, Any]] = {"transformer": TRANSFORMER, "text_encoder": TEXT_ENCODER, "vae": VAE}


@pytest.mark.parametrize(
    ("config", "takes"),
    [(TRANSFORMER, WanTransformer3DModel), (TEXT_ENCODER, UMT5Config), (VAE, AutoencoderKLWan),
     (SCHEDULER, UniPCMultistepScheduler)],
    ids=["transformer", "text_encoder", "vae", "scheduler"],
)  # fmt: skip
def test_what_the_publisher_wrote_gets_through_whole(config: dict[str, Any], takes: Any) -> None:
    """Not a key of it is lost, so that `.config` is what diffusers builds."""
    assert known_config(config, takes) == config


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"_attn_implementation_internal": "someone/kernel"},
        {"use_kernels": True},
        {"auto_map": {"AutoModel": "someone/repo--code.Model"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"trust_remote_code": True},
        {"torchscript": True},
        {"id2label": {"0": "a"}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_code_kernels_and_quantization_do_not(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the name that a user knows, nor by the one that the library keeps it under."""
    seen: dict[str, Any] = {}
    plain = UMT5Config.from_dict

    def from_dict(config: dict[str, Any]) -> Any:
        seen.update(config)
        return plain(config)

    monkeypatch.setattr(UMT5Config, "from_dict", from_dict)
    asked = []
    plain_import = builtins.__import__

    def watching(name: str, *arguments: Any, **options: Any) -> Any:
        asked.append(name)
        return plain_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", watching)
    model = build_skeleton("text_encoder", {**TEXT_ENCODER, **more}, "")
    assert isinstance(model, UMT5EncoderModel) and seen == TEXT_ENCODER
    assert not [name for name in asked if name.split(".")[0] == "kernels"]


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("transformer", "eps", "x"),
        ("transformer", "num_layers", 100_000),
        ("transformer", "num_layers", 2.5),
        ("transformer", "num_layers", True),
        ("transformer", "rope_max_seq_len", 100_000_000),
        ("transformer", "attention_head_dim", 1 << 19),
        ("transformer", "ffn_dim", 1 << 62),
        ("transformer", "patch_size", [1, 2, {}]),
        ("transformer", "patch_size", [1] * 100_000),
        ("transformer", "qk_norm", ["x"]),
        ("transformer", "qk_norm", "x" * 1000),
        ("transformer", "cross_attn_norm", 1),
        ("vae", "num_res_blocks", 1_000_000),
        ("vae", "dim_mult", [1] * 1000),
        ("vae", "dropout", float("nan")),
        ("vae", "latents_mean", [float("inf")] * 16),
        ("vae", "base_dim", "8"),
        ("text_encoder", "num_layers", 100_000),
        ("text_encoder", "vocab_size", {"a": 1}),
        ("text_encoder", "layer_norm_epsilon", "1e-6"),
        ("text_encoder", "d_ff", 10**400),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_size_is_refused_before_anything_is_built(
    component: str, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one short line that names the key; none took memory or time to find out."""

    def built(*_: Any, **__: Any) -> None:
        raise AssertionError("a layer was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", built)
    with pytest.raises(DamagedError, match=rf"{component}/config\.json is not a config of \w+ \({key} ") as caught:
        build_skeleton(component, {**CONFIGS[component], key: value}, "")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("component", "key"), [("transformer", "num_layers"), ("text_encoder", "num_layers"), ("vae", "num_res_blocks")]
)
def test_more_layers_than_the_files_hold_tensors_are_refused_before_anything_is_built(
    component: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has one at least."""
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a layer was built"))
    with pytest.raises(DamagedError, match=rf"{key} is 60, and its files hold 59 tensors"):
        build_skeleton(component, {**CONFIGS[component], key: 60}, "", tensors=59)


def test_a_scheduler_of_a_million_steps_is_refused() -> None:
    """Its tables would be computed when it is built."""
    with pytest.raises(ValueError, match="num_train_timesteps is 1000000000, 100000 at most"):
        known_config({**SCHEDULER, "num_train_timesteps": 10**9}, UniPCMultistepScheduler)


def test_whole_numbers_stand_for_numbers_and_null_for_what_may_be_missing() -> None:
    """JSON writers differ."""
    config = {**TRANSFORMER, "eps": 1, "image_dim": None}
    assert known_config(config, WanTransformer3DModel) == config
