"""The configs of a diffusers folder, made of the original's one config.json and of the shapes of its tensors.

What nothing in the original says, such as the scheduler, is as Wan-AI/Wan2.1-T2V-1.3B-Diffusers has it: its files are
in `published/`. `setup` compares every shape with what these configs describe.
"""

from __future__ import annotations

import json
import reprlib
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

_LARGEST = 1e9
"""Above whatever a config may say; Infinity and NaN, which Python takes for JSON, are not below it."""


def make_configs(original: Mapping[str, Any], tensors: Mapping[str, Iterable[Tensor]]) -> dict[str, bytes]:
    """The files that a diffusers folder has and the original lacks, by their paths.

    `original` is its config.json, `tensors` each component's, under their new names. Raises `SourceError`, and
    `NotSupportedError` for another kind of model.
    """
    kind = original.get("model_type")
    if kind != "t2v":
        raise NotSupportedError(
            f"config.json describes a model of type {reprlib.repr(kind)}, not text-to-video",
            "Use Wan 2.1 text-to-video, such as Wan-AI/Wan2.1-T2V-1.3B",
        )
    for key in ("dim", *_HEAD.values()):
        if type(original.get(key)) not in (int, float) or not 0 < original[key] < _LARGEST:
            raise SourceError(f"config.json has no {key} that can be one", "Fetch the source again")
    shapes = {component: _Shapes(component, held) for component, held in tensors.items()}
    changes = {
        "transformer": _transformer(original, shapes["transformer"]),
        "text_encoder": _text_encoder(shapes["text_encoder"]),
        "vae": _vae(shapes["vae"]),
    }
    files = {
        "model_index.json": _published("model_index"),
        "scheduler/scheduler_config.json": _published("scheduler"),
        **{f"{component}/config.json": _published(component) | changed for component, changed in changes.items()},
    }
    return {path: (json.dumps(file, indent=2, sort_keys=True) + "\n").encode() for path, file in files.items()}


def _published(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_PUBLISHED / f"{name}.json").read_bytes())
    return document


class _Shapes(dict[str, tuple[int, ...]]):
    """The shape of each tensor of a component."""

    def __init__(self, component: str, tensors: Iterable[Tensor]) -> None:
        super().__init__((tensor.name, tensor.shape) for tensor in tensors)
        self._component = component

    def size(self, name: str, dimension: int = 0) -> int:
        """One size of a tensor. Raises `SourceError` if there is none."""
        if len(self.get(name, ())) <= dimension or self[name][dimension] == 0:
            raise SourceError(f"{self._component}: tensor {name} is missing, or too small", "Fetch the source again")
        return self[name][dimension]


def _transformer(original: Mapping[str, Any], shapes: _Shapes) -> dict[str, Any]:
    return {
        **{new: original[old] for new, old in _HEAD.items()},
        "attention_head_dim": original["dim"] // original["num_heads"],
        "patch_size": [shapes.size("patch_embedding.weight", dimension) for dimension in (2, 3, 4)],
        "text_dim": shapes.size("condition_embedder.text_embedder.linear_1.weight", 1),
    }


def _text_encoder(shapes: _Shapes) -> dict[str, Any]:
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = shapes.size(f"{attention}.relative_attention_bias.weight", 1)
    layers = sum(name.endswith("relative_attention_bias.weight") for name in shapes)
    return {
        "vocab_size": shapes.size("shared.weight"),
        "d_model": shapes.size("shared.weight", 1),
        "d_kv": shapes.size(f"{attention}.q.weight") // heads,
        "d_ff": shapes.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
        "num_heads": heads,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "relative_attention_num_buckets": shapes.size(f"{attention}.relative_attention_bias.weight"),
    }


def _vae(shapes: _Shapes) -> dict[str, Any]:
    return {"base_dim": shapes.size("encoder.conv_in.weight"), "z_dim": shapes.size("post_quant_conv.weight")}
