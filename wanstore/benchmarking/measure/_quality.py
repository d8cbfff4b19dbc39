"""What can be said of a clip without a model: whether it is broken, and figures to compare it with others by.

Scores, each of the whole clip. What is good is a rule of thumb; noise, as of random weights, is outside most of them.

- `flicker`: mean change of a frame's mean luminance from one frame to the next. 0 to 1; good below 0.01.
- `sharpness`: variance of luminance's Laplacian, in 8-bit levels squared, mean over frames. From 0; good above 100.
  The focus measure of Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
- `motion`: mean absolute difference of a value from one frame to the next. 0 to 1; good from 0.002 to 0.1.
- `clipped`: share of values that are 0 or 1. 0 to 1; good below 0.05.

Against a reference clip:

- `psnr`: peak signal-to-noise ratio in dB, of the mean squared error over all frames. Up to 100; good above 30.
- `ssim`: structural similarity of luminance, mean over nine frames. -1 to 1, which is equal; good above 0.9.
  Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4), 2004.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs

from wanstore.benchmarking.rows import Quality
from wanstore.presets import Preset

if TYPE_CHECKING:
    import numpy

    Frames = numpy.ndarray[Any, Any]

BLACK_LUMINANCE = 2 / 255
"""A frame whose mean is below two of 255 levels shows nothing on a screen; a night scene is well above it."""

BLANK_DEVIATION = 1 / 255
"""A frame whose channels deviate by less than one of 255 levels is one colour to the eye."""

FROZEN_CHANGE = 0.5 / 255
"""Frames that differ nowhere by half of a level are the same frame in an 8-bit file. Even a still scene moves more."""

PSNR_CEILING = 100.0
"""In dB; stands for the infinity of equal clips, which JSON cannot hold. Rounding to 8 bits alone gives 59."""

SSIM_FRAMES = 9
"""Evenly spaced over the clip: a 720p frame takes a tenth of a second or more, too long for each of 161."""

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue: Rec. ITU-R BT.709."""

COMPARED = ("psnr", "ssim")
"""The scores against a reference clip."""

_BLANK_STRIDE = 5
# SSIM's Gaussian window as in Wang et al.: sigma 1.5, 11 pixels a side.
_SSIM_WINDOW = 11


def examine(frames: Frames, preset: Preset, reference: Frames | None = None) -> Quality:
    """Hard failures and scores of a clip (frames × height × width × 3, floats from 0 to 1).

    `reference` is the clip of the same prompt and seed by other weights, dtype or attention, such floats too or 8-bit
    levels; with it come `psnr` and `ssim`. A score that cannot be computed is in `missing`, with the reason. Needs the
    memory of a few frames besides the clip's own.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype.kind != "f" or not frames.size:
        what = f"The clip is {_shape(frames)} of {frames.dtype}, not frames × height × width × 3 floats"
        names = ("flicker", "sharpness", "motion", "clipped", *(COMPARED if reference is not None else ()))
        return Quality((what,), missing=dict.fromkeys(names, what))
    looks = list(_look_at(frames))
    scores, missing = _scores(looks)
    if reference is not None:
        compared, not_compared = compare_clips(frames, reference)
        scores |= compared
        missing |= not_compared
    return Quality((*_wrong_size(frames, preset), *_broken(looks, frames[0].size)), scores, missing)


def compare_clips(frames: Frames, reference: Frames) -> tuple[dict[str, float], dict[str, str]]:
    """`psnr` over all frames and `ssim` over nine of them, and why one is missing.

    With 8-bit levels as the reference, the clip is rounded to such too: equal clips stay equal.
    """
    import numpy as np

    def neither(why: str) -> tuple[dict[str, float], dict[str, str]]:
        return {}, dict.fromkeys(COMPARED, why)

    peak = 255 if reference.dtype == np.uint8 else 1

    def pair(at: int) -> tuple[Frames, Frames]:
        theirs, ours = _plain(reference[at]), _plain(frames[at])
        if peak == 1:
            return theirs, ours
        levels = ours * peak
        return theirs, np.rint(levels, out=levels)

    if frames.shape != reference.shape:
        return neither(f"The clip is {_shape(frames)}, the reference {_shape(reference)}")
    try:
        from skimage.metrics import mean_squared_error, structural_similarity
    except ImportError:
        return neither("scikit-image is not installed: pip install 'wanstore[bench]'")

    errors = [mean_squared_error(*pair(at)) for at in range(len(frames))]
    error = float(np.mean(errors)) / peak**2
    if not math.isfinite(error):
        return neither("The clip or the reference holds values that are not finite")
    scores = {"psnr": min(PSNR_CEILING, -10 * math.log10(error)) if error else PSNR_CEILING}
    if min(frames.shape[1:3]) < _SSIM_WINDOW:
        return scores, {"ssim": f"Frames of {_shape(frames[0])} are smaller than its window of {_SSIM_WINDOW} pixels"}
    chosen = sorted({round(at) for at in np.linspace(0, len(frames) - 1, SSIM_FRAMES)})
    similar = [
        structural_similarity(
            *map(_luminance, pair(at)),
            data_range=peak,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for at in chosen
    ]
    return {**scores, "ssim": float(np.mean(similar))}, {}


@attrs.frozen
class _Look:
    """One frame. `change` and `largest_change` are against the frame before, None for the first."""

    not_finite: int
    brightness: float = math.nan
    deviation: float = math.nan
    sharpness: float = math.nan
    clipped: float = math.nan
    change: float | None = None
    largest_change: float | None = None


def _look_at(frames: Frames) -> Iterator[_Look]:
    """A frame at a time, so that no copy of the clip is made."""
    import numpy as np

    before: Frames | None = None
    for raw in frames:
        frame = _plain(raw)
        not_finite = int(frame.size - np.count_nonzero(np.isfinite(frame)))
        if not_finite:
            before = None
            yield _Look(not_finite)
            continue
        luminance = _luminance(frame)
        change = None if before is None else np.abs(frame - before)
        yield _Look(
            not_finite=0,
            brightness=float(luminance.mean()),
            # A sample is enough to tell one colour; a stride of five can't fall in step with patches of 2, 8 or 16.
            deviation=float(frame[::_BLANK_STRIDE, ::_BLANK_STRIDE].std(axis=(0, 1)).max()),
            sharpness=_sharpness(luminance),
            clipped=float(np.count_nonzero(frame <= 0) + np.count_nonzero(frame >= 1)) / frame.size,
            change=None if change is None else float(change.mean()),
            largest_change=None if change is None else float(change.max()),
        )
        before = frame


def _wrong_size(frames: Frames, preset: Preset) -> Iterator[str]:
    count, height, width, _ = frames.shape
    if (width, height) != (preset.width, preset.height):
        yield f"Frames are {width}×{height}, not {preset.width}×{preset.height}"
    if count != preset.frames:
        yield f"The clip has {count} frames, not {preset.frames}"


def _broken(looks: list[_Look], values: int) -> Iterator[str]:
    """What no healthy clip has, noise included; one frame of it is enough."""
    count = len(looks)
    not_finite = sum(look.not_finite for look in looks)
    if not_finite:
        bad = sum(look.not_finite > 0 for look in looks)
        share = not_finite / (count * values)
        yield f"{bad} of {count} frames hold values that are not finite ({share:.3g} of all values)"
    black = [look for look in looks if look.brightness < BLACK_LUMINANCE]
    if black:
        brightest = max(look.brightness for look in black)
        yield f"{len(black)} of {count} frames are black (mean luminance {brightest:.4f} at most)"
    blank = [look for look in looks if look.deviation < BLANK_DEVIATION and look.brightness >= BLACK_LUMINANCE]
    if blank:
        largest = max(look.deviation for look in blank)
        yield f"{len(blank)} of {count} frames are one colour (standard deviation {largest:.4f} at most)"
    changes = [look.largest_change for look in looks if look.largest_change is not None]
    frozen = [change for change in changes if change < FROZEN_CHANGE]
    if frozen:
        yield f"{len(frozen)} of {count} frames equal the one before (largest change {max(frozen):.4f} at most)"


def _scores(looks: list[_Look]) -> tuple[dict[str, float], dict[str, str]]:
    if any(look.not_finite for look in looks):
        why = "The clip holds values that are not finite"
        return {}, dict.fromkeys(("flicker", "sharpness", "motion", "clipped"), why)
    count = len(looks)
    scores = {
        "sharpness": sum(look.sharpness for look in looks) / count,
        "clipped": sum(look.clipped for look in looks) / count,
    }
    if count == 1:
        return scores, dict.fromkeys(("flicker", "motion"), "One frame has no change")
    steps = [abs(after.brightness - before.brightness) for before, after in pairwise(looks)]
    changes = [look.change for look in looks if look.change is not None]
    return {"flicker": sum(steps) / len(steps), "motion": sum(changes) / len(changes), **scores}, {}


def _plain(frame: Frames) -> Frames:
    """The frame as float32 or wider: numpy works on float16 many times slower, and too coarsely for sums."""
    import numpy as np

    return frame.astype(np.result_type(frame.dtype, np.float32), copy=False)


def _luminance(frame: Frames) -> Frames:
    import numpy as np

    result: Frames = frame @ np.array(LUMINANCE, frame.dtype)
    return result


def _sharpness(luminance: Frames) -> float:
    """Of the inner pixels, which have four neighbours; 0 where there are none."""
    if min(luminance.shape) < 3:
        return 0.0
    laplacian = luminance[:-2, 1:-1] + luminance[2:, 1:-1]
    laplacian += luminance[1:-1, :-2]
    laplacian += luminance[1:-1, 2:]
    laplacian -= 4 * luminance[1:-1, 1:-1]
    return float(laplacian.var()) * 255**2


def _shape(array: Frames) -> str:
    return "×".join(map(str, array.shape))
