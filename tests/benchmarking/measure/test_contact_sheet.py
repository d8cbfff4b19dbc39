"""A contact sheet shows a clip at a glance, and is small enough to keep beside a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wanstore.benchmarking.measure._contact_sheet import contact_sheet

Clip = np.ndarray[Any, Any]


def noise(frames: int, height: int, width: int, dtype: str = "float32") -> Clip:
    return np.random.default_rng(0).random((frames, height, width, 3), np.float32).astype(dtype)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".png", "PNG"), (".PNG", "PNG")])
def test_the_suffix_says_the_format(tmp_path: Path, suffix: str, kind: str, dtype: str) -> None:
    """Folders on the way are made."""
    path = tmp_path / "pictures" / f"sheet{suffix}"
    contact_sheet(noise(9, 48, 80, dtype), path)
    with Image.open(path) as image:
        assert image.format == kind


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    ("height", "width"), [(720, 1280), (832, 480), (144, 192)], ids=["landscape", "portrait", "the sheet's own size"]
)
def test_a_sheet_of_noise_stays_small(tmp_path: Path, height: int, width: int, suffix: str) -> None:
    """Noise compresses worst of all; the last size is not smoothed on its way."""
    path = tmp_path / f"sheet{suffix}"
    contact_sheet(noise(6, height, width), path)
    assert path.stat().st_size < 150_000
    assert opened(path).width <= 1200


def test_frames_are_evenly_spaced_from_first_to_last(tmp_path: Path) -> None:
    """Each frame of this clip has a grey of its own; six of them appear, from left to right."""
    greys = np.linspace(0.2, 1, 81)
    clip = np.broadcast_to(greys[:, None, None, None], (81, 96, 192, 3)).astype(np.float16)
    contact_sheet(clip, tmp_path / "sheet.png")
    sheet = opened(tmp_path / "sheet.png")
    middles = [6 + 96 + place * 198 for place in range(6)]
    shown = [np.asarray(sheet)[50, at].mean() / 255 for at in middles]
    assert shown == pytest.approx([greys[at] for at in (0, 16, 32, 48, 64, 80)], abs=0.02)


def test_each_frame_has_its_time_below(tmp_path: Path) -> None:
    """Clips of the same pictures differ in their labels alone: 0.0 s in both, then 5.0 s against 10.0 s."""
    contact_sheet(np.zeros((81, 96, 192, 3), np.float16), tmp_path / "five.png")
    contact_sheet(np.zeros((161, 96, 192, 3), np.float16), tmp_path / "ten.png")
    five, ten = (np.asarray(opened(tmp_path / name)).astype(int) for name in ("five.png", "ten.png"))
    assert five[6 + 96 :].max() > 150  # ink on the dark strip
    differs = np.abs(five - ten).max(axis=2) > 60  # a palette may be off by a little
    rows, columns = differs.nonzero()
    assert rows.min() >= 6 + 96
    assert columns.min() > 198 and columns.max() > 6 + 5 * 198


def test_a_clip_of_fewer_frames_shows_each_once(tmp_path: Path) -> None:
    """One frame makes a sheet of one."""
    contact_sheet(noise(1, 96, 192), tmp_path / "one.png")
    contact_sheet(noise(5, 96, 192), tmp_path / "five.png")
    assert opened(tmp_path / "one.png").width == 6 + 198
    assert opened(tmp_path / "five.png").width == 6 + 5 * 198


def test_tiny_frames_keep_their_pixels(tmp_path: Path) -> None:
    """A checkerboard of two by two is four clean squares, not a blur."""
    clip = np.zeros((1, 2, 2, 3), np.float32)
    clip[0, 0, 0] = clip[0, 1, 1] = 1
    contact_sheet(clip, tmp_path / "sheet.png")
    picture = np.asarray(opened(tmp_path / "sheet.png"))[6 : 6 + 144, 6 : 6 + 144]
    assert set(np.unique(picture)) == {0, 255}


def test_a_broken_clip_still_makes_a_sheet(tmp_path: Path) -> None:
    """Values that are not finite or out of range are shown, not raised."""
    clip = noise(5, 48, 80)
    clip[0], clip[1], clip[2], clip[3] = np.nan, np.inf, -np.inf, 1.5
    contact_sheet(clip, tmp_path / "sheet.png")
    row = np.asarray(opened(tmp_path / "sheet.png"))[40].astype(int)
    middles = [6 + 96 + place * 198 for place in range(4)]
    assert [bool(row[at].mean() > 128) for at in middles] == [False, True, False, True]
