"""Presets: the four of production, and files that override them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest

import wanstore
from wanstore.choices import PresetName
from wanstore.errors import InvalidSettingError, NotFoundError, NotSupportedError
from wanstore.presets import PRESETS, load_presets, preset_named


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_production_has_four_presets_cheapest_first() -> None:
    """Sizes and frames are those that Wan 2.1 is published for, at 16 frames a second."""
    sizes = [(one.name, one.width, one.height, one.frames, one.flow_shift) for one in PRESETS.values()]
    assert sizes == [
        ("480p/3s", 832, 480, 49, 8.0),
        ("480p/5s", 832, 480, 81, 8.0),
        ("720p/5s", 1280, 720, 81, 8.0),
        ("720p/10s", 1280, 720, 161, 8.0),
    ]


def test_their_names_are_a_type() -> None:
    """A checker refuses any other, and an editor offers them."""
    assert get_args(PresetName) == tuple(PRESETS)


@pytest.mark.parametrize("function", [wanstore.bench, wanstore.compile_blocks])
def test_a_wrong_preset_is_told_before_anything_is_looked_for(function: Callable[..., Any]) -> None:
    """With those there are; a name that is not in a list is no list of letters."""
    with pytest.raises(NotFoundError, match=r"no preset '480p/2s'. Use one of: 480p/3s, 480p/5s, 720p/5s, 720p/10s"):
        function("w", store="/nowhere", presets=["480p/3s", "480p/2s"])
    for alone in ("480p/3s", PRESETS["480p/3s"]):
        with pytest.raises(NotSupportedError, match=r"Give a list, such as \['480p/3s'\]"):
            function("w", store="/nowhere", presets=alone)


def test_presets_say_where_the_model_is_out_of_its_depth() -> None:
    """1.3B was trained on 480p and on 81 frames."""
    assert not PRESETS["480p/5s"].notes
    assert "less stable" in PRESETS["720p/5s"].notes
    assert "less stable" in PRESETS["720p/10s"].notes and "beyond the trained length" in PRESETS["720p/10s"].notes


def test_without_a_file_the_packages_presets_are_given() -> None:
    """As a copy: what a caller does to it stays there."""
    found = load_presets(None)
    assert found == PRESETS and found is not PRESETS


def test_a_file_changes_only_the_fields_that_it_has(tmp_path: Path) -> None:
    """The other fields and the other presets stay."""
    found = load_presets(written(tmp_path, '["480p/3s"]\nsteps = 30\nguidance_scale = 7\n'))
    ours = PRESETS["480p/3s"]
    assert (found["480p/3s"].steps, found["480p/3s"].guidance_scale) == (30, 7)
    assert (found["480p/3s"].width, found["480p/3s"].frames) == (ours.width, ours.frames)
    assert found["480p/5s"] == PRESETS["480p/5s"] and PRESETS["480p/3s"].steps == 50


def test_presets_have_the_recipe_of_the_model(tmp_path: Path) -> None:
    """A file's new ones too; what the file says stays as it is said."""
    mine = written(tmp_path, "[small]\nwidth = 416\nheight = 240\nframes = 33\n[odd]\nwidth = 416\nheight = 240\n"
                             "frames = 33\nflow_shift = 9\n")  # fmt: skip
    large, small = load_presets(mine, "T2V-14B"), load_presets(mine)
    assert [large[name].flow_shift for name in ("480p/5s", "720p/5s", "small", "odd")] == [3.0, 5.0, 3.0, 9.0]
    assert [small[name].flow_shift for name in ("480p/5s", "720p/5s", "small", "odd")] == [8.0, 8.0, 8.0, 9.0]
    assert (large["480p/3s"].guidance_scale, small["480p/3s"].guidance_scale) == (5.0, 6.0)


def test_a_file_adds_presets(tmp_path: Path) -> None:
    """They come after the package's, and are found by name."""
    found = load_presets(written(tmp_path, "[small]\nwidth = 416\nheight = 240\nframes = 33\n"))
    assert list(found) == [*PRESETS, "small"]
    assert preset_named("small", found).frames == 33 and preset_named("small", found).steps == 50


def test_a_name_that_is_none_is_told_with_those_there_are(tmp_path: Path) -> None:
    """The file's as well."""
    found = load_presets(written(tmp_path, "[small]\nwidth = 416\nheight = 240\nframes = 33\n"))
    with pytest.raises(NotFoundError, match=r"480p/3s.*small"):
        preset_named("tiny", found)


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        ("[p]\nwidht = 832", "widht", "no field"),
        ('[p]\nname = "x"', "name", "no field"),
        ("[p]\nwidth = 830\nheight = 480\nframes = 49", "width", "multiple of 16"),
        ("[p]\nwidth = 832\nheight = 0\nframes = 49", "height", "multiple of 16"),
        ("[p]\nwidth = 832\nheight = -480\nframes = 49", "height", "multiple of 16"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 48", "frames", "4k[+]1"),
        ("[p]\nwidth = 832\nheight = 480\nframes = -3", "frames", "4k[+]1"),
        ("[p]\nwidth = 832\nheight = 480", "frames", "missing"),
        ('[p]\nwidth = "832"\nheight = 480\nframes = 49', "width", "not a whole number"),
        ("[p]\nwidth = 832.0\nheight = 480\nframes = 49", "width", "not a whole number"),
        ("[p]\nwidth = 832\nheight = 480\nframes = true", "frames", "not a whole number"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nsteps = 0", "steps", "0"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nflow_shift = 0", "flow_shift", "above 0"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nguidance_scale = inf", "guidance_scale", "above 0"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nflow_shift = nan", "flow_shift", "above 0"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nnotes = 3", "notes", "not text"),
        ('[p]\nwidth = 832\nheight = 480\nframes = 49\ncache = "first_block"', "cache", "=THRESHOLD"),
        ('[p]\nwidth = 832\nheight = 480\nframes = 49\ncache = "second_block=0.1"', "cache", "not first_block"),
        ('[p]\nwidth = 832\nheight = 480\nframes = 49\ncache = "sea=-1"', "cache", "=THRESHOLD"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nguidance_until = 0", "guidance_until", "share"),
        ("[p]\nwidth = 832\nheight = 480\nframes = 49\nguidance_until = 1.5", "guidance_until", "share"),
        ("p = 3", "p", "not a table"),
    ],
)
def test_a_mistake_is_told_by_file_preset_and_field(tmp_path: Path, text: str, field: str, why: str) -> None:
    """Nothing is guessed, nothing rounded."""
    with pytest.raises(InvalidSettingError, match=why) as caught:
        load_presets(written(tmp_path, text))
    assert "mine.toml" in caught.value.what and "'p'" in caught.value.what and field in caught.value.what
    assert caught.value.next_step


@pytest.mark.parametrize("field", ["widht", "name"])
def test_the_fields_that_there_are_are_those_that_a_file_may_have(tmp_path: Path, field: str) -> None:
    """Not `name`, which is the table's own."""
    with pytest.raises(InvalidSettingError) as caught:
        load_presets(written(tmp_path, f'[p]\n{field} = "x"'))
    assert caught.value.next_step == (
        "Use width, height, frames, steps, guidance_scale, flow_shift, negative_prompt, notes, cache, guidance_until"
    )


def test_no_preset_of_the_packages_changes_clips_to_save_time() -> None:
    """It is for whoever has seen what it does."""
    assert not any(preset.lossy for preset in PRESETS.values())
    lossy = attrs.evolve(PRESETS["480p/3s"], cache="first_block=0.05", guidance_until=0.6)
    assert lossy.lossy and lossy.lossless == PRESETS["480p/3s"]


@pytest.mark.parametrize("content", [b"[p\nwidth", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    """Broken syntax and broken text alike."""
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(InvalidSettingError, match=r"mine\.toml is not TOML"):
        load_presets(tmp_path / "mine.toml")


def test_a_file_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    """A folder of that name is no file either."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(NotFoundError, match="cannot be read"):
            load_presets(path)
