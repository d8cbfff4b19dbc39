"""Configs are data: what of them reaches the libraries, and in which bounds.

A config comes from the publisher, or from whoever wrote the store. Given all of it, transformers and diffusers would
fetch attention kernels, quantize, or build a million layers. Only keys that the class itself takes get through, as
numbers, flags and short texts of the type that it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_MAX = {
    "num_layers": 512, "num_decoder_layers": 512, "num_res_blocks": 64, "attention_head_dim": 512,
    "rope_max_seq_len": 16_384, "pos_embed_seq_len": 4096, "num_train_timesteps": 100_000,
}  # fmt: skip
"""Eight times the largest Wan 2.1 and more. Each unit of these costs time or memory before a tensor is read."""
_DEPTHS = ("num_layers", "num_res_blocks")
"""A layer or a block has a tensor at least. The text encoder's `num_decoder_layers` are never built."""
_MAX_SIZE = 1 << 20
_MAX_NUMBER = 1e9
_MAX_ITEMS = {"dim_mult": 16, "temperal_downsample": 16, "attn_scales": 16, "trained_betas": 100_000}
_MAX_LIST = 1024
_MAX_TEXT = 100
_INERT = {
    "_class_name", "_diffusers_version", "_name_or_path", "architectures", "model_type", "transformers_version",
    "dtype", "torch_dtype", "dense_act_fn", "is_gated_act", "output_past", "scalable_attention",
    "tie_word_embeddings", "tokenizer_class",
}  # fmt: skip
"""Published keys that no class takes and that no code acts on, or only as on a number: they show up in `.config`."""


def known_config(config: Mapping[str, Any], takes: Callable[..., Any], tensors: int | None = None) -> dict[str, Any]:
    """The part of `config` that `takes`, a class or its constructor, has arguments for; the rest is left out.

    With the number of `tensors` in the component's files, it may not describe more layers than these.
    Raises `ValueError` naming the key when a value is of another type than the argument's default, or out of bounds.
    """
    defaults = {name: argument.default for name, argument in inspect.signature(takes).parameters.items()}
    known = {}
    for key, value in config.items():
        if key not in defaults and key not in _INERT:
            continue
        default = defaults.get(key)
        if isinstance(value, dict) and default is None:  # labels of classifiers, nested configs: nothing that Wan has
            continue
        _check(key, value, default if default is not inspect.Parameter.empty else None)
        if key in _DEPTHS and tensors is not None and value is not None and value > tensors:
            raise ValueError(f"{key} is {value}, and its files hold {tensors} tensors")
        known[key] = value
    return known


def _check(key: str, value: Any, default: Any) -> None:
    if isinstance(value, list) and isinstance(default, list | tuple | int | None) and not isinstance(default, bool):
        most = _MAX_ITEMS.get(key, _MAX_LIST)
        if len(value) > most:
            raise ValueError(f"{key} has {len(value)} entries, {most} at most are taken")
        for item in value:
            _check_scalar(key, item, None)
    elif value is not None:
        _check_scalar(key, value, default)


def _check_scalar(key: str, value: Any, default: Any) -> None:
    kind, wanted = type(value), type(default)
    if kind not in (bool, int, float, str):
        raise ValueError(f"{key} is {_shown(value)}, not {_kind(default)}")
    if default is not None and kind is not wanted and (kind, wanted) != (int, float):
        raise ValueError(f"{key} is {_shown(value)}, not {_kind(default)}")
    if kind is str and len(value) > _MAX_TEXT:
        raise ValueError(f"{key} is a text of {len(value)} characters, {_MAX_TEXT} at most are taken")
    if kind is float and not abs(value) <= _MAX_NUMBER:
        raise ValueError(f"{key} is {value}, which no model can use")
    if kind is int and abs(value) > _MAX.get(key, _MAX_SIZE):
        raise ValueError(f"{key} is {_shown(value)}, {_MAX.get(key, _MAX_SIZE)} at most is taken")


def _kind(default: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "a plain value",
    }
    return kinds.get(type(default), "a list")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
