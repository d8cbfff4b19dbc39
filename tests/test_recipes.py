"""Recipes: which model a pipeline is, and how its clips are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from wanstore.presets import PRESETS, Preset
from wanstore.recipes import DEFAULT_MODEL, RECIPES, model_in, model_of, recipe_of

SMALL = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
LARGE = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}


@pytest.mark.parametrize(
    ("config", "model"),
    [(SMALL, "T2V-1.3B"), (LARGE, "T2V-14B"), (SMALL | {"num_layers": 2}, ""), ({}, "")],
)
def test_a_model_is_known_by_its_transformers_config(config: Any, model: str) -> None:
    """One that is cut down is none of them."""
    assert model_of(config) == model


@pytest.mark.parametrize(("text", "model"), [(json.dumps(SMALL), "T2V-1.3B"), ("[]", ""), ("{", ""), (None, "")])
def test_a_folders_model_is_read_from_it(tmp_path: Path, text: str | None, model: str) -> None:
    """What cannot be read is not known; loading tells what is wrong with it."""
    if text is not None:
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer/config.json").write_text(text)
    assert model_in(tmp_path) == model


def test_the_small_model_has_its_publishers_recipe() -> None:
    """Guidance 6, shift 8, for 480p; with another height there is no other advice."""
    recipe = RECIPES["T2V-1.3B"]
    assert (recipe.steps, recipe.guidance_scale) == (50, 6.0)
    assert {recipe.flow_shift_at(height) for height in (240, 480, 720)} == {8.0}
    assert str(recipe) == "50 steps, guidance 6, flow shift 8" and "--sample_shift 8" in recipe.source


def test_the_large_models_shift_goes_by_the_height() -> None:
    """That of the largest height that the clip reaches."""
    recipe = RECIPES["T2V-14B"]
    assert [recipe.flow_shift_at(height) for height in (240, 480, 704, 720, 1080)] == [3.0, 3.0, 3.0, 5.0, 5.0]
    assert str(recipe) == "50 steps, guidance 5, flow shift 3 from 480p, 5 from 720p"


def test_an_unknown_model_gets_the_recipe_that_presets_have() -> None:
    """And so does a preset that is made by hand."""
    assert recipe_of("") == RECIPES[DEFAULT_MODEL]
    by_hand = Preset("480p/3s", 832, 480, 49)
    assert by_hand == attrs.evolve(PRESETS["480p/3s"], notes="")


def test_clips_have_a_negative_prompt_of_plain_words() -> None:
    """Short enough to be read whole: the text encoder takes 512 tokens."""
    for recipe in RECIPES.values():
        assert 0 < len(recipe.negative_prompt.split()) < 100 and recipe.negative_prompt.isascii()
