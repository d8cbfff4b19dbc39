"""The tokenizer's config is data too: each key has its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wanstore.building._tokenizer import load_tokenizer
from wanstore.errors import DamagedError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_max_length", "x"),
        ("model_max_length", -1),
        ("model_max_length", True),
        ("model_max_length", float("nan")),
        ("padding_side", "up"),
        ("padding_side", 5),
        ("truncation_side", []),
        ("clean_up_tokenization_spaces", "x"),
        ("pad_token", {"text": "<pad>"}),
        ("pad_token", {"content": {}}),
        ("pad_token", 5),
        ("pad_token", "x" * 100_000),
        ("bos_token", [1]),
        ("additional_special_tokens", [{}]),
        ("additional_special_tokens", [5]),
    ],
)
def test_a_value_of_another_kind_is_damage_by_file_and_key(tiny_copy: Path, key: str, value: Any) -> None:
    """In one short line."""
    path = tiny_copy / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DamagedError, match=rf"tokenizer_config\.json: {key} is .*, not ") as caught:
        load_tokenizer(path.parent)
    assert len(caught.value.what) - len(str(path)) < 200


def test_what_no_tokenizer_takes_is_left_out(tiny_copy: Path) -> None:
    """Code above all."""
    path = tiny_copy / "tokenizer/tokenizer_config.json"
    more = {"auto_map": {"AutoTokenizer": ["someone/repo--code.Tokenizer", None]}, "trust_remote_code": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    tokenizer = load_tokenizer(path.parent)
    assert not more.keys() & tokenizer.init_kwargs.keys()
