"""The configs of a diffusers folder, made of the original's one config.json and of the shapes of its tensors.

What nothing in the original says, such as the scheduler, is as Wan-AI/Wan2.1-T2V-1.3B-Diffusers has it: its files are
in `published/`. `setup` compares every shape with what these configs describe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wanstore._formats._safetensors import Tensor
from wanstore.errors import NotSupportedError, SourceError

_PUBLISHED = Path(__file__).with_name("published")
_HEAD = {
    "num_layers": "num_layers", "ffn_dim": "ffn_dim", "freq_dim": "freq_dim", "num_attention_heads": "num_heads",
    "in_channels": "in_dim", "out_channels": "out_dim", "eps": "eps",
}  # fmt: skip
"""What the transformer's config takes over, by its new name and its old one."""


def make_configs(original: Mapping[str, Any], tensors: Mapping[str, Iterable[Tensor]]) -> dict[str, bytes]:
    """The files that a diffusers folder has and the original lacks, by their paths.

    `original` is its config.json, `tensors` each component's, under their new names. Raises `SourceError`, and
    `NotSupportedError` for another kind of model.
    """
    kind = original.get("model_type")
    if kind != "t2v":
        raise NotSupportedError(
            f"config.json describes a model of type {kind!r}, not text-to-video",
            "Use Wan 2.1 text-to-video, such as Wan-AI/Wan2.1-T2V-1.3B",
        )
    shapes = {component: {tensor.name: tensor.shape for tensor in held} for component, held in tensors.items()}
    try:
        changes = {
            "transformer": _transformer(original, shapes["transformer"]),
            "text_encoder": _text_encoder(shapes["text_encoder"]),
            "vae": _vae(shapes["vae"]),
        }
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise SourceError(
            f"config.json and the tensors are not of one Wan 2.1 ({type(error).__name__}: {error})",
            "Fetch the source again",
        ) from error
    files = {
        "model_index.json": _published("model_index"),
        "scheduler/scheduler_config.json": _published("scheduler"),
        **{f"{component}/config.json": _published(component) | changed for component, changed in changes.items()},
    }
    return {path: (json.dumps(file, indent=2, sort_keys=True) + "\n").encode() for path, file in files.items()}


def _published(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_PUBLISHED / f"{name}.json").read_bytes())
    return document


_Shapes = Mapping[str, tuple[int, ...]]


def _transformer(original: Mapping[str, Any], shapes: _Shapes) -> dict[str, Any]:
    return {
        **{new: original[old] for new, old in _HEAD.items()},
        "attention_head_dim": original["dim"] // original["num_heads"],
        "patch_size": list(shapes["patch_embedding.weight"][2:]),
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
    }


def _text_encoder(shapes: _Shapes) -> dict[str, Any]:
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shapes[f"{attention}.relative_attention_bias.weight"]
    vocabulary, width = shapes["shared.weight"]
    layers = sum(name.endswith("relative_attention_bias.weight") for name in shapes)
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[f"{attention}.q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_heads": heads,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "relative_attention_num_buckets": buckets,
    }


def _vae(shapes: _Shapes) -> dict[str, Any]:
    return {
        "base_dim": shapes["encoder.conv_in.weight"][0],
        "z_dim": shapes["post_quant_conv.weight"][0],
    }
