"""The tokenizer, encoding as the stored tokenizer.json says.

transformers 5's `T5TokenizerFast` rebuilds umT5's tokenizer instead of reading it: it assumes `<unk>` to be
2 (umT5: 3) and drops the file's normalizer and pre-tokenizer, so that prompts with double spaces, line breaks
or unknown characters get other ids than the model was trained on. It is also slower by seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from wanstore._json import read_json
from wanstore.errors import DamagedError

_REPAIR = "Run setup again with --replace"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_COPIED = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; special tokens and lengths are those of its tokenizer_config.json.

    Raises `DamagedError` when a file is missing or malformed, or tokenizer.json lacks a special token.
    """
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    config = read_json(config_file)
    named = {key: _text(config[key]) for key in _NAMED if config.get(key)}
    if "pad_token" not in named:
        raise DamagedError(f"{config_file} names no pad_token, which prompts need", _REPAIR)
    if not file.is_file():
        raise DamagedError(f"{file} is missing", _REPAIR)
    options = {key: config[key] for key in _COPIED if config.get(key) is not None}
    try:
        # Without a name_or_path: given one, transformers asks the Hub about it when the vocabulary is large.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **options)
        vocabulary_size = len(tokenizer)
        tokenizer.add_special_tokens({**named, "extra_special_tokens": _extra(config)})
    except Exception as error:  # the Rust parser raises plain Exception
        raise DamagedError(f"{file} is not a tokenizer ({error})", _REPAIR) from error
    if len(tokenizer) > vocabulary_size:  # a new id, which the text encoder's embedding has no row for
        raise DamagedError(f"{file} lacks a special token that {config_file.name} names", _REPAIR)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _extra(config: dict[str, Any]) -> list[str]:
    extra = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    return [_text(token) for token in extra] if isinstance(extra, list) else []


def _text(token: Any) -> str:
    """A special token is written as its text, or as an object with its flags."""
    return str(token["content"] if isinstance(token, dict) else token)
