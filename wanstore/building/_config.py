"""Configs are data: what of them reaches the libraries, and in which bounds.

A config comes from the publisher, or from whoever wrote the store. Given all of it, transformers and diffusers would
fetch attention kernels, quantize, or build a million layers. Only keys that the class itself takes get through, as
numbers, flags and short texts of the type that it takes.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from wanstore._error_translation import in_one_line

_MAX = {
    "num_layers": 512, "num_decoder_layers": 512, "num_res_blocks": 64, "attention_head_dim": 512,
    "rope_max_seq_len": 16_384, "pos_embed_seq_len": 4096, "num_train_timesteps": 100_000,
}  # fmt: skip
"""Eight times the largest Wan 2.1 and more. Each unit of these costs time or memory before a tensor is read."""
_DEPTHS = ("num_layers", "num_res_blocks")
"""A layer or a block has a tensor at least. The text encoder's `num_decoder_layers` are never built."""
_MAX_SIZE = 1 << 20
_MAX_NUMBER = 10**9
_MAX_ITEMS = {"dim_mult": 16, "temperal_downsample": 16, "attn_scales": 16, "trained_betas": 100_000}
_MAX_LIST = 1024
_MAX_TEXT = 100
_MAX_REASON = 300
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_CHOICES = {
    "dtype": _DTYPES, "torch_dtype": _DTYPES, "qk_norm": ("rms_norm_across_heads",),
    "feed_forward_proj": ("gated-gelu",), "dense_act_fn": ("gelu_new",),
}  # fmt: skip
"""Texts that name code; Wan 2.1 has these."""
_INERT = {
    "_class_name": "str", "_diffusers_version": "str", "_name_or_path": "str", "architectures": "list[str]",
    "model_type": "str", "transformers_version": "str", "dtype": "str", "torch_dtype": "str", "dense_act_fn": "str",
    "is_gated_act": "bool", "output_past": "bool", "scalable_attention": "bool", "scale_decoder_outputs": "bool",
    "tie_word_embeddings": "bool", "tokenizer_class": "str",
}  # fmt: skip
"""Published keys that no class takes and that no code acts on, or only as on a number: they show up in `.config`."""
_MISANNOTATED = {"sigma_max": "float | None", "shift_terminal": "float | None"}
"""Annotated as flags in diffusers' UniPCMultistepScheduler, and used as numbers."""
_NAMES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}


def known_config(config: Mapping[str, Any], takes: Callable[..., Any], tensors: int | None = None) -> dict[str, Any]:
    """The part of `config` that `takes`, a class or its constructor, has arguments for; the rest is left out.

    With the number of `tensors` in the component's files, it may not describe more layers than these. Whole numbers
    become floats where it wants these. Raises `ValueError` naming the key when a value is of another type than the
    argument's annotation, or out of bounds.
    """
    arguments = inspect.signature(takes).parameters
    known = {}
    for key, value in config.items():
        if key not in arguments and key not in _INERT:
            continue
        default = arguments[key].default if key in arguments else None
        if isinstance(value, dict) and default is None:  # labels of classifiers, nested configs: nothing that Wan has
            continue
        kinds = _kinds(key, arguments)
        if type(value) is not type(default) or value != default:  # defaults may be infinite
            _check(key, value, kinds, default)
        if key in _DEPTHS and tensors is not None and value > tensors:
            raise ValueError(f"{key} is {value}, and its files hold {tensors} tensors")
        known[key] = float(value) if type(value) is int and "int" not in kinds else value
    return known


def reason(error: Exception) -> str:
    """What an error of a library says of a config, in one line that is not too long."""
    text = in_one_line(error)
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def _kinds(key: str, arguments: Mapping[str, inspect.Parameter]) -> set[str]:
    """The types of JSON values that the argument's annotation names. Some classes have theirs as texts."""
    text = str(arguments[key].annotation) if key in arguments else f"{_INERT[key]} | None"
    text = re.sub(r"Literal\[[^]]*\]", "str", _MISANNOTATED.get(key, text))
    return set(re.findall(r"\b(?:bool|int|float|str|list|tuple|None)\b", text))


def _check(key: str, value: Any, kinds: set[str], default: Any) -> None:
    if value is None and (default is None or "None" in kinds):
        return
    if isinstance(value, list) and kinds & {"list", "tuple"}:
        most = _MAX_ITEMS.get(key, _MAX_LIST)
        if len(value) > most:
            raise ValueError(f"{key} has {len(value)} entries, {most} at most are taken")
        for item in value:
            _check_scalar(key, item, kinds, default[0] if isinstance(default, list | tuple) and default else None)
    elif isinstance(default, list | tuple):
        raise ValueError(f"{key} is {reprlib.repr(value)}, not a list")
    else:
        _check_scalar(key, value, kinds, default)


def _check_scalar(key: str, value: Any, kinds: set[str], example: Any) -> None:
    kind = type(value).__name__
    if kind not in _NAMES or (kind not in kinds and not (kind == "int" and "float" in kinds)):
        wanted = " or ".join(name for each, name in _NAMES.items() if each in kinds) or "null"
        raise ValueError(f"{key} is {reprlib.repr(value)}, not {wanted}")
    if kind == "str":
        if len(value) > _MAX_TEXT:
            raise ValueError(f"{key} is a text of {len(value)} characters, {_MAX_TEXT} at most are taken")
        if value not in _CHOICES.get(key, (value,)):
            raise ValueError(f"{key} is {value!r}, not {' or '.join(_CHOICES[key])}")
    elif kind != "bool":
        most = _MAX.get(key, _MAX_SIZE) if kind == "int" else _MAX_NUMBER
        least = max(_least(key, kinds, example), -most)
        if not least <= value <= most:  # NaN is neither
            raise ValueError(f"{key} is {reprlib.repr(value)}, not between {least} and {most}")


def _least(key: str, kinds: set[str], example: Any) -> float:
    """The smallest number that makes sense: sizes are positive, and what is not negative by default never is."""
    if key.endswith("_token_id"):  # -1 stands for none
        return -1
    if type(example) in (int, float):
        return -inf if example < 0 else int(type(example) is int and example > 0)
    return -inf if "float" in kinds else 0
