"""Recipes: how clips of a model are made, kept as data in `recipes.toml`. The recipe belongs to the model.

Needs attrs alone, as presets do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._toml import read_toml

DEFAULT_MODEL = "T2V-1.3B"
"""The model that presets are for, and whose recipe one gets that is none of those here, as a tiny one for tests."""


@attrs.frozen
class Recipe:
    """How clips of one model are made.

    Attributes:
        model: its name, as the publisher's.
        steps: denoising steps.
        guidance_scale: above 1, each step runs twice.
        flow_shift: of the schedule, by the clip's height in pixels: that of the largest height that it reaches.
        negative_prompt: what clips should not show.
        source: who advises it, and where.
    """

    model: str
    steps: int
    guidance_scale: float
    flow_shift: Mapping[int, float]
    negative_prompt: str
    source: str

    def flow_shift_at(self, height: int) -> float:
        """The flow shift of a clip of that height."""
        reached = [limit for limit in self.flow_shift if limit <= height]
        return self.flow_shift[max(reached, default=min(self.flow_shift))]

    def __str__(self) -> str:
        shifts = ", ".join(f"{shift:g} from {height}p" for height, shift in self.flow_shift.items())
        shift = shifts if len(self.flow_shift) > 1 else f"{self.flow_shift_at(0):g}"
        return f"{self.steps} steps, guidance {self.guidance_scale:g}, flow shift {shift}"


def _recipe(model: str, table: Mapping[str, Any]) -> Recipe:
    fields = {key: value for key, value in table.items() if key not in ("transformer", "flow_shift")}
    return Recipe(model, flow_shift={int(height): shift for height, shift in table["flow_shift"].items()}, **fields)


_TABLES = read_toml(Path(__file__).with_name("recipes.toml"))
RECIPES: dict[str, Recipe] = {model: _recipe(model, table) for model, table in _TABLES.items()}
"""The recipe of each model, by the model's name."""


def model_of(config: Mapping[str, Any]) -> str:
    """The model that a transformer's config is of; "" if it is none of `RECIPES`."""
    for model, table in _TABLES.items():
        if all(config.get(key) == value for key, value in table["transformer"].items()):
            return model
    return ""


def model_in(folder: Path) -> str:
    """The model of a pipeline folder; "" if it is none of `RECIPES`, or cannot be read."""
    try:
        config = json.loads((folder / "transformer/config.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return model_of(config) if isinstance(config, dict) else ""


def recipe_of(model: str) -> Recipe:
    """The recipe of that model, or that of `DEFAULT_MODEL` if there is none."""
    return RECIPES.get(model, RECIPES[DEFAULT_MODEL])
