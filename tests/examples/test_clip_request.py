"""examples/clip_request.py: what is refused before a GPU wakes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic", reason="what the endpoint's images have")
sys.path.append(str(Path(__file__).parents[2] / "examples"))

from clip_request import checked  # type: ignore[import-not-found]

RIGHT = {"prompt": "a fox"}


def test_a_prompt_is_enough() -> None:
    """The rest has defaults; space around the prompt says nothing."""
    asked = checked({"prompt": "  a fox\n"})
    assert asked.model_dump() == {
        "prompt": "a fox", "preset": "480p/3s", "negative_prompt": None, "seed": 0, "may_degrade": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": ["a fox"] * 20}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a" * 2001}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        (RIGHT | {"negative_prompt": "a" * 2001}, "negative_prompt"),
        (RIGHT | {"preset": "8k/1h"}, "preset"),
        (RIGHT | {"preset": 480}, "preset"),
        (RIGHT | {"seed": -1}, "seed"),
        (RIGHT | {"seed": 2**63}, "seed"),
        (RIGHT | {"seed": 1.5}, "seed"),
        (RIGHT | {"seed": "1"}, "seed"),
        (RIGHT | {"seed": True}, "seed"),
        (RIGHT | {"may_degrade": "no"}, "may_degrade"),
        (RIGHT | {"steps": 1000}, "steps"),
        (["a fox"], "the request"),
        ("a fox", "the request"),
        (None, "the request"),
    ],
)
def test_whatever_is_wrong_is_told_by_its_field(request_: Any, field: str) -> None:
    """As a `ValueError`, which every caller can import, on one line."""
    with pytest.raises(ValueError, match=f"^{field}: ") as caught:
        checked(request_)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_everything_that_is_wrong_is_told_at_once() -> None:
    """So that nobody mends one thing at a time."""
    with pytest.raises(ValueError, match=r"prompt: .*; preset: .*only 480p/3s, .*; seed: "):
        checked({"prompt": "", "preset": "8k", "seed": -1})
