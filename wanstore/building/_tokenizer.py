"""The tokenizer, encoding as the stored tokenizer.json says.

transformers 5's `T5TokenizerFast` rebuilds umT5's tokenizer instead of reading it: it assumes `<unk>` to be
2 (umT5: 3) and drops the file's normalizer and pre-tokenizer, so that prompts with double spaces, line breaks
or unknown characters get other ids than the model was trained on. It is also slower by seconds.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from wanstore._formats._json import read_json
from wanstore.building._config import reason
from wanstore.errors import DamagedError

_REPAIR = "Run setup again with --replace"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_MAX_TOKEN = 100
_SIDES = ("left", "right")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; special tokens and lengths are those of its tokenizer_config.json.

    Raises `DamagedError` when a file is missing or malformed, a key has a value of another kind, or tokenizer.json
    lacks a special token.
    """
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    config = read_json(config_file)
    try:
        named = {key: _text(key, config[key]) for key in _NAMED if config.get(key)}
        extra, options = _extra(config), _options(config)
    except ValueError as error:
        raise DamagedError(f"{config_file}: {error}", _REPAIR) from error
    if "pad_token" not in named:
        raise DamagedError(f"{config_file} names no pad_token, which prompts need", _REPAIR)
    if not file.is_file():
        raise DamagedError(f"{file} is missing", _REPAIR)
    try:
        # Without a name_or_path: given one, transformers asks the Hub about it when the vocabulary is large.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **options)
        vocabulary_size = len(tokenizer)
        tokenizer.add_special_tokens({**named, "extra_special_tokens": extra})
    except Exception as error:  # the Rust parser raises plain Exception
        raise DamagedError(f"{file} is not a tokenizer ({reason(error)})", _REPAIR) from error
    if len(tokenizer) > vocabulary_size:  # a new id, which the text encoder's embedding has no row for
        raise DamagedError(f"{file} lacks a special token that {config_file.name} names", _REPAIR)
    return tokenizer


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """The lengths and sides that `config` sets."""
    fits: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "model_max_length": ("a positive number", lambda value: type(value) in (int, float) and value > 0),
        "padding_side": ("left or right", lambda value: value in _SIDES),
        "truncation_side": ("left or right", lambda value: value in _SIDES),
        "clean_up_tokenization_spaces": ("true or false", lambda value: isinstance(value, bool)),
    }
    options = {key: config[key] for key in fits if config.get(key) is not None}
    for key, value in options.items():
        wanted, fit = fits[key]
        if not fit(value):
            raise ValueError(f"{key} is {reprlib.repr(value)}, not {wanted}")
    return options


def _extra(config: dict[str, Any]) -> list[str]:
    key = "additional_special_tokens" if "additional_special_tokens" in config else "extra_special_tokens"
    extra = config.get(key)
    return [_text(key, token) for token in extra] if isinstance(extra, list) else []


def _text(key: str, token: Any) -> str:
    """A special token is written as its text, or as an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or len(text) > _MAX_TOKEN:
        raise ValueError(f"{key} is {reprlib.repr(token)}, not a text of {_MAX_TOKEN} characters at most")
    return text
