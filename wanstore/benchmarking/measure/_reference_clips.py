"""Clips on the disk, so that a later run's can be compared with them: a preset's is `480p-3s.npy`, 8-bit levels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanstore._files import hash_file, sync
from wanstore.generation import eight_bits
from wanstore.presets import Preset

if TYPE_CHECKING:
    import numpy

    Frames = numpy.ndarray[Any, Any]


def save_clip(frames: Frames, folder: Path, preset: Preset) -> str:
    """Save a preset's clip in place of an earlier one, and give its SHA-256; whoever looks sees either whole."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, preset)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            np.save(file, eight_bits(frames))
        sync(new)
        digest = hash_file(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)  # hundreds of MB, if the disk is full
    return digest


def open_clip(folder: Path, preset: Preset) -> Frames:
    """A preset's saved clip, which is read from the disk as it is used. Raises `ValueError` when there is none."""
    import numpy as np

    path = _path(folder, preset)
    try:
        clip: Frames = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ValueError(f"there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} can't be read: {error}") from error
    if clip.dtype != np.uint8:
        raise ValueError(f"{path.name} holds {clip.dtype}, not 8-bit levels")
    return clip


def hash_clip(folder: Path, preset: Preset) -> str | None:
    """SHA-256 of a preset's saved clip; None where there is none."""
    try:
        return hash_file(_path(folder, preset))
    except FileNotFoundError:
        return None


def _path(folder: Path, preset: Preset) -> Path:
    return folder / f"{preset.name.replace('/', '-')}.npy"
