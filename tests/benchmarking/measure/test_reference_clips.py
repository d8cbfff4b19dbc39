"""Clips that are kept: whole or not at all, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wanstore._files import hash_file
from wanstore.benchmarking.measure import _reference_clips as clips
from wanstore.benchmarking.measure._reference_clips import hash_clip, open_clip, save_clip
from wanstore.presets import Preset

PRESET = Preset("480p/3s", width=32, height=16, frames=5)


def frames(value: float) -> np.ndarray[Any, Any]:
    return np.full((5, 16, 32, 3), value, np.float32)


def test_a_clip_comes_back_in_8_bit_levels(tmp_path: Path) -> None:
    """By its preset's name; a later one replaces it, and nothing else is left in the folder."""
    assert hash_clip(tmp_path / "new", PRESET) is None
    save_clip(frames(1), tmp_path / "new", PRESET)
    digest = save_clip(frames(0.5), tmp_path / "new", PRESET)
    clip = open_clip(tmp_path / "new", PRESET)
    assert clip.dtype == np.uint8 and clip.shape == (5, 16, 32, 3) and np.all(clip == 128)
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "480p-3s.npy" and digest == hash_file(path) == hash_clip(tmp_path / "new", PRESET)


def test_writing_that_fails_leaves_the_clip_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no part of the new one."""
    digest = save_clip(frames(0.5), tmp_path, PRESET)

    def fails(_: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(clips, "sync", fails)
    with pytest.raises(OSError, match="no space"):
        save_clip(frames(1), tmp_path, PRESET)
    assert len(list(tmp_path.iterdir())) == 1 and hash_clip(tmp_path, PRESET) == digest


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no 480p-3s.npy"),
        (b"", "480p-3s.npy can't be read"),
        (b"no clip", "480p-3s.npy can't be read"),
        (frames(0.5), "480p-3s.npy holds float32, not 8-bit levels"),
    ],
)
def test_what_is_no_clip_is_not_opened(tmp_path: Path, content: Any, why: str) -> None:
    """Missing, empty, or of another kind."""
    path = tmp_path / "480p-3s.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(ValueError, match=why):
        open_clip(tmp_path, PRESET)


def test_a_clip_that_was_cut_off_is_not_opened(tmp_path: Path) -> None:
    """Its header promises more than there is."""
    save_clip(frames(0.5), tmp_path, PRESET)
    path = tmp_path / "480p-3s.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="can't be read"):
        open_clip(tmp_path, PRESET)
