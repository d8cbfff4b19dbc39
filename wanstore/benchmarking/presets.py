"""Presets: named resolutions and durations, kept as data in `presets.toml`."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import attrs

from wanstore.errors import NotFoundError

FRAMES_PER_SECOND = 16
"""What Wan 2.1 was trained at."""


def _multiple_of_16(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value <= 0 or value % 16:
        raise ValueError(f"{attribute.name} is {value}, not a multiple of 16")


def _four_k_plus_one(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 1 or value % 4 != 1:
        raise ValueError(f"{attribute.name} is {value}, not 4k+1")


@attrs.frozen
class Preset:
    """One clip's size and recipe: pixels, frames at 16 a second, denoising steps."""

    name: str
    width: int = attrs.field(validator=_multiple_of_16)
    height: int = attrs.field(validator=_multiple_of_16)
    frames: int = attrs.field(validator=_four_k_plus_one)
    steps: int = attrs.field(default=50, validator=attrs.validators.ge(1))
    guidance_scale: float = 5.0
    flow_shift: float = 3.0
    notes: str = ""


def _read() -> dict[str, Preset]:
    table = tomllib.loads(files(__package__).joinpath("presets.toml").read_text())
    return {name: Preset(name=name, **fields) for name, fields in table.items()}


PRESETS: dict[str, Preset] = _read()
"""The four presets of production, by name, cheapest first."""


def preset_named(name: str) -> Preset:
    """The preset called `name`. Raises `NotFoundError` listing those there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise NotFoundError(f"There is no preset {name!r}", f"Use one of: {', '.join(PRESETS)}") from None
