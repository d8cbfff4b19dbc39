"""Presets: named resolutions and durations, kept as data in `presets.toml`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._toml import checked, read_toml
from wanstore.errors import InvalidSettingError, NotFoundError
from wanstore.recipes import DEFAULT_MODEL, Recipe, recipe_of

FRAMES_PER_SECOND = 16
"""What Wan 2.1 was trained at."""
SPATIAL = 8
"""Pixels of the clip along each edge of a latent pixel."""
TEMPORAL = 4
"""Frames of the clip to a latent frame, except the first, which is one frame."""


@attrs.frozen
class ClipSize:
    """A clip's size: pixels, frames, and how many are made at once."""

    width: int
    height: int
    frames: int
    batch: int = 1

    def __str__(self) -> str:
        many = f"{self.batch} clips" if self.batch > 1 else "A clip"
        return f"{many} of {self.width}×{self.height} and {self.frames} frames"

    @property
    def latent_frames(self) -> int:
        """The VAE makes one of the first frame, and of each four after it."""
        return (self.frames - 1) // TEMPORAL + 1

    @property
    def shape(self) -> tuple[int, int]:
        """Clips at once, and the tokens of each: what tells the transformer's inputs apart."""
        return self.batch, self.tokens // self.batch

    @property
    def tokens(self) -> int:
        """What the transformer sees of it: a token is a patch of 1 × 2 × 2 latent pixels, 16 × 16 of the clip's."""
        return self.batch * self.latent_frames * (self.height // 16) * (self.width // 16)


def _multiple_of_16(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value <= 0 or value % 16:
        raise ValueError(f"{attribute.name} is {value}, not a multiple of 16")


def _four_k_plus_one(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 1 or value % 4 != 1:
        raise ValueError(f"{attribute.name} is {value}, not 4k+1")


def _positive(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} is {value}, not a number above 0")


CACHES = {"first_block": "FirstBlockCacheConfig", "sea": "SeaCacheConfig"}
"""diffusers' caches that a threshold is enough for, by what a preset calls them."""


def _cache_with_threshold(_: object, __: object, value: str) -> None:
    name, _, threshold = value.partition("=")
    if value and not (name in CACHES and re.fullmatch(r"\d*\.?\d+", threshold, re.ASCII)):
        raise ValueError(f"cache is {value!r}, not {' or '.join(f'{known}=THRESHOLD' for known in CACHES)}")


def _share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{attribute.name} is {value}, not a share above 0, up to 1")


_DEFAULT = recipe_of(DEFAULT_MODEL)


@attrs.frozen
class Preset:
    """One clip's size and recipe: pixels, frames at 16 a second, and what `wanstore.recipes` says of the model.

    Made by hand, without them, it has the recipe of `DEFAULT_MODEL`.

    Two fields save time and change the clip. They are off unless a preset has them: what they cost in quality, trained
    weights and eyes have to tell. `cache` has steps reuse what earlier ones computed, by one of diffusers' caches and a
    threshold, as in `first_block=0.05`; the blocks run eagerly then. `guidance_until` is the share of the steps, from
    the first, that are made with guidance: one without takes half the time.
    """

    name: str
    width: int = attrs.field(validator=_multiple_of_16)
    height: int = attrs.field(validator=_multiple_of_16)
    frames: int = attrs.field(validator=_four_k_plus_one)
    steps: int = attrs.field(default=_DEFAULT.steps, validator=attrs.validators.ge(1))
    guidance_scale: float = attrs.field(default=_DEFAULT.guidance_scale, validator=_positive)
    flow_shift: float = attrs.field(default=_DEFAULT.flow_shift_at(480), validator=_positive)
    negative_prompt: str = _DEFAULT.negative_prompt
    notes: str = ""
    cache: str = attrs.field(default="", validator=_cache_with_threshold)
    guidance_until: float = attrs.field(default=1.0, validator=_share)

    @property
    def lossy(self) -> bool:
        """Whether it saves time at the expense of the clip."""
        return bool(self.cache) or self.guidance_until < 1

    @property
    def lossless(self) -> Preset:
        """The same without that."""
        return attrs.evolve(self, cache="", guidance_until=1.0)

    @property
    def clip(self) -> ClipSize:
        """The size of one clip, as plans of memory know it."""
        return ClipSize(self.width, self.height, self.frames)


_NEEDED = ("width", "height", "frames")


def _read(path: Path, given: Mapping[str, Preset], recipe: Recipe) -> dict[str, Preset]:
    tables = read_toml(path)
    return {**given, **{name: _preset(name, table, given.get(name), path, recipe) for name, table in tables.items()}}


def _preset(name: str, table: object, given: Preset | None, path: Path, recipe: Recipe) -> Preset:
    where = f"{path}, preset {name!r}"
    fields = checked(Preset, table, where, but="name")  # that is the table's own
    missing = [] if given else [key for key in _NEEDED if key not in fields]
    if missing:
        raise InvalidSettingError(f"{where}: {missing[0]} is missing", f"A new preset needs {', '.join(_NEEDED)}")
    try:
        if given:
            return attrs.evolve(given, **fields)
        made: dict[str, Any] = {
            "steps": recipe.steps,
            "guidance_scale": recipe.guidance_scale,
            "flow_shift": recipe.flow_shift_at(fields["height"]),
            "negative_prompt": recipe.negative_prompt,
        }
        return Preset(name=name, **(made | fields))
    except ValueError as error:
        raise InvalidSettingError(f"{where}: {error}", "Correct the file") from error


_FILE = Path(__file__).with_name("presets.toml")

PRESETS: dict[str, Preset] = _read(_FILE, {}, _DEFAULT)
"""The four presets of production, by name, cheapest first, with the recipe of `DEFAULT_MODEL`."""


def load_presets(path: Path | None, model: str = DEFAULT_MODEL) -> dict[str, Preset]:
    """The package's presets by that model's recipe, overridden and added to by the TOML file at `path`, of like form.

    A table named like one of the package's changes only the fields that it has. Raises `NotFoundError` when there is
    no such file, and `InvalidSettingError`, which names file, preset and field.
    """
    recipe = recipe_of(model)
    presets = _read(_FILE, {}, recipe)
    return presets if path is None else _read(path, presets, recipe)


def preset_named(name: str, presets: Mapping[str, Preset] = PRESETS) -> Preset:
    """The preset called `name`. Raises `NotFoundError` listing those there are."""
    try:
        return presets[name]
    except KeyError:
        raise NotFoundError(f"There is no preset {name!r}", f"Use one of: {', '.join(presets)}") from None
