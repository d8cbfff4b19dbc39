"""Pictures of a clip for the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanstore.presets import FRAMES_PER_SECOND

if TYPE_CHECKING:
    import numpy

_FRAMES = 6
_BOX = (192, 144)  # six of them make a sheet of about 1200 pixels
_GAP = 6
_LABEL = 20
_BACKGROUND, _INK = (22, 24, 29), (200, 204, 212)  # dark, so that it suits light pages and dark ones
_JPEG_QUALITY = 85
_PNG_COLOURS = 96  # noise does not compress: a byte a pixel keeps it small


def contact_sheet(frames: numpy.ndarray[Any, Any], path: Path) -> None:
    """Six evenly spaced frames of a clip in a row, each with its time, as a JPEG or PNG by the name of `path`.

    `frames` is frames × height × width × 3, floats from 0 to 1, at 16 frames a second; values that are not finite
    are shown as black or white. The sheet is at most 1200 pixels wide and takes less than 150 kB even of noise.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    chosen = sorted({round(at) for at in np.linspace(0, len(frames) - 1, _FRAMES)})
    height, width = frames.shape[1:3]
    scale = min(_BOX[0] / width, _BOX[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Tiny frames keep their pixels; large ones are smoothed.
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST

    sheet = Image.new("RGB", (_GAP + len(chosen) * (size[0] + _GAP), _GAP + size[1] + _LABEL), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, at in enumerate(chosen):
        pixels = (np.nan_to_num(frames[at], posinf=1, neginf=0).clip(0, 1) * 255).round().astype(np.uint8)
        left = _GAP + place * (size[0] + _GAP)
        sheet.paste(Image.fromarray(pixels).resize(size, resampling), (left, _GAP))
        middle = (left + size[0] / 2, _GAP + size[1] + _LABEL / 2)
        draw.text(middle, f"{at / FRAMES_PER_SECOND:.1f} s", _INK, font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        sheet.quantize(_PNG_COLOURS).save(path, optimize=True)
    else:
        sheet.save(path, quality=_JPEG_QUALITY, optimize=True)
