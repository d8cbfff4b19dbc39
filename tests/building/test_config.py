"""Configs are data: what does not describe shapes and numbers does not reach the libraries."""

from __future__ import annotations

import builtins
import inspect
import json
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.schedulers import SchedulerMixin
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
        ("transformer", "num_layers", -5),
        ("transformer", "num_layers", [3]),
        ("transformer", "num_layers", None),
        ("transformer", "eps", -1.0),
        ("transformer", "eps", float("inf")),
        ("transformer", "image_dim", "x"),
        ("transformer", "image_dim", True),
        ("transformer", "patch_size", ["a", "b", "c"]),
        ("transformer", "patch_size", [True, 2, 2]),
        ("transformer", "patch_size", 5),
        ("transformer", "qk_norm", "another"),
        ("transformer", "_class_name", ["x"]),
        ("vae", "latents_mean", ["x"] * 16),
        ("vae", "latents_mean", None),
        ("vae", "dim_mult", [0, 0, 0, 0]),
        ("vae", "temperal_downsample", [1, 2, 3]),
        ("vae", "scale_factor_spatial", -8),
        ("text_encoder", "layer_norm_epsilon", -1),
        ("text_encoder", "tie_word_embeddings", "x"),
        ("text_encoder", "dense_act_fn", "someone/kernel"),
        ("text_encoder", "torch_dtype", "set_default_dtype"),
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
    with pytest.raises(ValueError, match="num_train_timesteps is 1000000000, not between 1 and 100000"):
        known_config({**SCHEDULER, "num_train_timesteps": 10**9}, UniPCMultistepScheduler)


@pytest.mark.parametrize(
    ("component", "sizes"),
    [
        ("transformer", {"num_attention_heads": 1 << 20, "attention_head_dim": 512}),
        ("transformer", {"image_dim": 1 << 20, "pos_embed_seq_len": 4096}),
        ("text_encoder", {"num_layers": 512, "d_model": 1 << 20}),
        ("vae", {"decoder_base_dim": 1 << 20}),
    ],
)
def test_sizes_that_multiply_to_gigabytes_are_refused_before_they_take_memory(
    component: str, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is within its bounds."""
    largest = 0
    plain = torch.zeros

    def watched(*size: Any, **options: Any) -> torch.Tensor:
        nonlocal largest
        made = plain(*size, **options)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch, "zeros", watched)
    with pytest.raises(DamagedError, match=rf"{component}/config\.json .*\(its sizes multiply to more than 16777216"):
        build_skeleton(component, {**CONFIGS[component], **sizes}, "")
    assert largest <= 16777216


def schedulers() -> list[Any]:
    """Those of diffusers that can be made without arguments."""
    found = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")]
    classes = [each for each in found if isinstance(each, type) and issubclass(each, SchedulerMixin)]
    required = inspect.Parameter.empty
    return [
        each
        for each in classes
        if not any(
            argument.default is required
            for argument in list(inspect.signature(each).parameters.values())
            if argument.kind is argument.POSITIONAL_OR_KEYWORD
        )
    ]


def test_what_schedulers_write_of_themselves_gets_through() -> None:
    """Whichever a pipeline comes with: annotations and defaults agree."""
    assert len(schedulers()) > 30
    for scheduler in schedulers():
        config = json.loads(scheduler().to_json_string())
        assert known_config(config, scheduler).keys() == config.keys(), scheduler


def test_whole_numbers_stand_for_numbers_and_null_for_what_may_be_missing() -> None:
    """JSON writers differ."""
    config = {**TRANSFORMER, "eps": 1, "image_dim": None}
    assert known_config(config, WanTransformer3DModel) == config
