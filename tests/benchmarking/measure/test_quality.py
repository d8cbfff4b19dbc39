"""`examine` tells broken clips from healthy ones, and its scores move the way that they say."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wanstore._formats._json import to_json
from wanstore.benchmarking.measure._quality import PSNR_CEILING, SSIM_FRAMES, examine
from wanstore.benchmarking.rows import Quality
from wanstore.generation import eight_bits
from wanstore.presets import Preset

Clip = np.ndarray[Any, Any]

PRESET = Preset("small", width=64, height=48, frames=9)
SCORES = {"flicker", "sharpness", "motion", "clipped"}
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Clips are made slowly where other tests run beside these."""

CLIPS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 4), st.integers(3, 8), st.integers(3, 8), st.just(3)),
    elements=st.floats(0, 1, width=32),
)


def gradient(preset: Preset = PRESET) -> Clip:
    """A smooth ramp of colour that moves by two pixels a frame, and is as bright in every frame."""
    ramp = 0.5 + 0.4 * np.sin(2 * np.pi * np.arange(preset.width) / preset.width)
    rows = [np.roll(ramp, 2 * number) for number in range(preset.frames)]
    lines = np.stack([np.stack([row, row[::-1], 1 - row], axis=-1) for row in rows])
    return np.repeat(lines[:, None], preset.height, axis=1).astype(np.float32)


def noise(preset: Preset = PRESET, seed: int = 0) -> Clip:
    """What random weights make, at its worst: every value by itself."""
    shape = (preset.frames, preset.height, preset.width, 3)
    return np.random.default_rng(seed).random(shape, np.float32)


def skimage() -> Any:
    return pytest.importorskip("skimage", reason="scikit-image (extra `bench`) is not installed")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_clip_is_compared_in_the_8_bit_levels_that_its_reference_was_kept_in(dtype: str) -> None:
    """Rounding is no difference; one level everywhere is just that, and no clip is changed by being compared."""
    skimage()
    clip = noise().astype(dtype) * 0.9
    before, levels = clip.copy(), eight_bits(clip)
    equal = examine(clip, PRESET, levels).scores
    assert equal["psnr"] == PSNR_CEILING and equal["ssim"] == pytest.approx(1)
    one_off = examine(clip, PRESET, levels + np.uint8(1)).scores
    assert one_off["psnr"] == pytest.approx(20 * np.log10(255), abs=1e-3)
    assert np.array_equal(clip, before) and np.array_equal(levels, eight_bits(clip))


# What no clip may be.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("clip", [gradient(), noise()], ids=["gradient", "noise"])
def test_a_healthy_clip_passes_and_noise_is_healthy(clip: Clip, dtype: str) -> None:
    """No failure, and every score, whatever the float type."""
    quality = examine(clip.astype(dtype), PRESET)
    assert quality.failures == ()
    assert set(quality.scores) == SCORES
    assert quality.missing == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_fails(value: float) -> None:
    """The figure counts frames; scores are missing rather than NaN."""
    clip = gradient()
    clip[3, 5, 7, 1] = value
    quality = examine(clip, PRESET)
    (failure,) = quality.failures
    assert failure.startswith("1 of 9 frames hold values that are not finite")
    assert quality.scores == {}
    assert set(quality.missing) == SCORES


def test_a_frame_that_is_not_finite_is_compared_with_nothing() -> None:
    """The frames around it are not neighbours, equal or not."""
    clip = gradient()
    clip[3] = np.nan
    clip[4] = clip[2]
    assert len(examine(clip, PRESET).failures) == 1


def test_frames_of_another_size_fail() -> None:
    """Width and height are told as they are and as the preset wants them."""
    quality = examine(gradient()[:, :32], PRESET)
    assert quality.failures == ("Frames are 64×32, not 64×48",)
    assert set(quality.scores) == SCORES


def test_a_missing_frame_fails() -> None:
    """So does one too many."""
    assert examine(gradient()[:-1], PRESET).failures == ("The clip has 8 frames, not 9",)
    assert examine(np.concatenate([gradient(), noise()[:1]]), PRESET).failures == ("The clip has 10 frames, not 9",)


@pytest.mark.parametrize("broken", [gradient()[0], gradient()[..., :2], gradient()[:0], noise().astype(np.uint8)])
def test_what_is_no_clip_fails_without_scores(broken: Clip) -> None:
    """Wrong dimensions, two channels, no frame, and whole numbers."""
    quality = examine(broken, PRESET, gradient())
    assert len(quality.failures) == 1 and "not frames × height × width × 3 floats" in quality.failures[0]
    assert quality.scores == {}
    assert set(quality.missing) == {*SCORES, "psnr", "ssim"}


@pytest.mark.parametrize("hot_pixel", [0.0, 1.0])
def test_one_black_frame_fails(hot_pixel: float) -> None:
    """Even with a hot pixel in it; it is not called one colour as well."""
    clip = gradient()
    clip[4] = 0
    clip[4, 0, 0] = hot_pixel
    (failure,) = examine(clip, PRESET).failures
    assert failure.startswith("1 of 9 frames are black")


def test_a_night_scene_is_not_black() -> None:
    """A few lights in the dark are a picture."""
    clip = 0.05 * gradient()
    assert examine(clip, PRESET).failures == ()


@pytest.mark.parametrize("colour", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.9, 0.1, 0.3)])
def test_one_frame_of_one_colour_fails(colour: tuple[float, float, float]) -> None:
    """White, grey, or any other."""
    clip = noise()
    clip[2] = colour
    (failure,) = examine(clip, PRESET).failures
    assert failure.startswith("1 of 9 frames are one colour")


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_a_pattern_is_not_one_colour(period: int) -> None:
    """Also one that repeats as a decoder's patches do."""
    wider = Preset("wider", width=96, height=48, frames=9)
    clip = np.full((9, 48, 96, 3), 0.5, np.float32)
    for number in range(wider.frames):
        clip[number, :, number % period :: period] = 0.9
    assert examine(clip, wider).failures == ()


def test_a_repeated_frame_fails() -> None:
    """Equal at 8 bits is equal: rounding in a lower precision does not make it move."""
    clip = gradient()
    clip[5] = clip[4] + 0.001
    (failure,) = examine(clip, PRESET).failures
    assert failure.startswith("1 of 9 frames equal the one before")


def test_a_still_clip_fails() -> None:
    """All of it is frozen."""
    clip = np.repeat(noise()[:1], PRESET.frames, axis=0)
    (failure,) = examine(clip, PRESET).failures
    assert failure.startswith("8 of 9 frames equal the one before")


def test_a_clip_of_one_frame_can_neither_flicker_nor_move() -> None:
    """It is no failure where the preset asks for one frame."""
    one = Preset("one", width=64, height=48, frames=1)
    quality = examine(noise(one), one)
    assert quality.failures == ()
    assert set(quality.scores) == {"sharpness", "clipped"}
    assert quality.missing == dict.fromkeys(("flicker", "motion"), "One frame has no change")


# Scores.


@PATIENT
@given(CLIPS)
def test_scores_stay_in_their_ranges(clip: Clip) -> None:
    """Whatever the clip; and they go into a report as plain JSON."""
    scores = examine(clip, PRESET).scores
    for name in ("flicker", "motion", "clipped"):
        assert 0 <= scores[name] <= 1 + 1e-6
    assert 0 <= scores["sharpness"] <= (4 * 255) ** 2
    assert json.loads(json.dumps(to_json(Quality(scores=scores)), allow_nan=False))["scores"] == scores


@PATIENT
@given(CLIPS)
def test_scores_are_the_same_backwards_and_mirrored(clip: Clip) -> None:
    """Neither time's direction nor left and right matter."""
    scores = examine(clip, PRESET).scores
    assert examine(clip[::-1], PRESET).scores == pytest.approx(scores, rel=1e-3, abs=1e-6)
    assert examine(clip[:, :, ::-1], PRESET).scores == pytest.approx(scores, rel=1e-3, abs=1e-6)


@PATIENT
@given(CLIPS)
def test_half_precision_scores_about_the_same(clip: Clip) -> None:
    """Sums are not made in float16."""
    half = clip.astype(np.float16)
    assert examine(half, PRESET).scores == examine(half.astype(np.float32), PRESET).scores


def test_flicker_is_nothing_at_constant_brightness_whatever_moves() -> None:
    """The gradient moves and keeps its brightness; the same with every other frame darker flickers."""
    clip = gradient()
    calm = examine(clip, PRESET).scores
    assert calm["flicker"] == pytest.approx(0, abs=1e-6)
    assert calm["motion"] > 0.01
    clip[1::2] -= 0.05
    assert examine(clip, PRESET).scores["flicker"] == pytest.approx(0.05, abs=1e-5)


def test_motion_is_the_mean_change_of_a_value() -> None:
    """A tenth more each frame is a motion of a tenth."""
    picture = 0.1 * noise()[0]
    clip = np.stack([picture + 0.1 * number for number in range(PRESET.frames)])
    assert examine(clip, PRESET).scores["motion"] == pytest.approx(0.1, abs=1e-5)


def test_sharpness_falls_with_blur() -> None:
    """Each pass of a box blur lowers it."""
    sharp = noise()
    soft = (sharp + np.roll(sharp, 1, axis=1) + np.roll(sharp, 1, axis=2)) / 3
    softer = (soft + np.roll(soft, 1, axis=1) + np.roll(soft, 1, axis=2)) / 3
    scores = [examine(clip, PRESET).scores["sharpness"] for clip in (sharp, soft, softer, gradient())]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 100 * scores[-1]


def test_sharpness_of_stripes_is_known() -> None:
    """Columns of levels 0 and 51 in turn have a Laplacian of ±102: a variance of 102²."""
    clip = np.zeros((2, 8, 12, 3), np.float32)
    clip[:, :, ::2] = 51 / 255
    assert examine(clip, PRESET).scores["sharpness"] == pytest.approx(102**2, rel=1e-4)


def test_clipped_is_the_share_of_extreme_values() -> None:
    """Zeros and ones count, what is just inside does not."""
    clip = np.full((2, 8, 16, 3), 0.001, np.float32)
    clip[:, :, :2] = 0
    clip[:, :, 2:4] = 1
    assert examine(clip, PRESET).scores["clipped"] == 0.25


# Against a reference.


def test_an_equal_clip_has_the_highest_psnr_and_ssim() -> None:
    """Infinity is no JSON: the ceiling stands for it."""
    skimage()
    quality = examine(noise(), PRESET, noise())
    assert quality.scores["psnr"] == PSNR_CEILING
    assert quality.scores["ssim"] == pytest.approx(1)
    assert quality.missing == {}


def test_psnr_of_a_known_error() -> None:
    """An error of a tenth everywhere is 20 dB, of a hundredth 40, also of a half-precision clip."""
    skimage()
    clip = 0.5 * noise()
    assert examine(clip + np.float32(0.1), PRESET, clip).scores["psnr"] == pytest.approx(20, abs=1e-3)
    assert examine(clip + np.float32(0.01), PRESET, clip).scores["psnr"] == pytest.approx(40, abs=1e-2)
    assert examine((clip + 0.1).astype(np.float16), PRESET, clip).scores["psnr"] == pytest.approx(20, abs=1e-2)


def test_psnr_is_of_the_whole_clip() -> None:
    """One bad frame among nine is not averaged away in decibels."""
    metrics = skimage() and pytest.importorskip("skimage.metrics")
    clip, other = gradient(), gradient()
    other[3] = noise()[3]
    expected = metrics.peak_signal_noise_ratio(clip, other, data_range=1.0)
    assert examine(other, PRESET, clip).scores["psnr"] == pytest.approx(expected, abs=1e-3)


def test_ssim_of_flat_frames_is_known() -> None:
    """Without structure only luminance counts: (2ab + c) / (a² + b² + c) with c = 0.01², as the paper has it."""
    skimage()
    clip, other = np.full((3, 16, 16, 3), 0.5, np.float64), np.full((3, 16, 16, 3), 0.6, np.float64)
    expected = (2 * 0.5 * 0.6 + 0.01**2) / (0.5**2 + 0.6**2 + 0.01**2)
    assert examine(other, PRESET, clip).scores["ssim"] == pytest.approx(expected, abs=1e-6)


def test_ssim_has_the_window_of_the_paper() -> None:
    """A frame of 11×11 has one full window: weights of a Gaussian with sigma 1.5, and the paper's formula."""
    skimage()
    grey, other = noise()[:1, :11, :11, :1].astype(np.float64), noise(seed=1)[:1, :11, :11, :1].astype(np.float64)
    bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / np.outer(bell, bell).sum()
    x, y = grey[0, :, :, 0], other[0, :, :, 0]
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    spread_x, spread_y = (weights * x**2).sum() - mean_x**2, (weights * y**2).sum() - mean_y**2
    both = (weights * x * y).sum() - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2)
    quality = examine(np.repeat(other, 3, axis=3), PRESET, np.repeat(grey, 3, axis=3))
    assert quality.scores["ssim"] == pytest.approx(expected, abs=1e-6)


def test_ssim_falls_with_the_error() -> None:
    """More noise over the gradient is less like it; plain noise is not like it at all."""
    skimage()
    clip = gradient()
    mixed = [(1 - share) * clip + share * noise() for share in (0.0, 0.1, 0.5, 1.0)]
    scores = [examine(one, PRESET, clip).scores["ssim"] for one in mixed]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1) and scores[-1] < 0.2


def test_a_long_clip_is_compared_at_both_ends() -> None:
    """SSIM looks at nine frames; the first and the last are among them."""
    skimage()
    preset = Preset("long", width=16, height=16, frames=4 * SSIM_FRAMES + 1)
    clip = noise(preset)
    for at in (0, -1):
        other = clip.copy()
        other[at] = 1 - other[at]
        assert examine(other, preset, clip).scores["ssim"] < 0.95


def test_a_reference_of_another_size_says_why() -> None:
    """The other scores are there, and it is no failure of the clip."""
    quality = examine(noise(), PRESET, noise()[:, :32])
    assert quality.failures == ()
    assert set(quality.scores) == SCORES
    why = "The clip is 9×48×64×3, the reference 9×32×64×3"
    assert quality.missing == {"psnr": why, "ssim": why}


def test_a_reference_that_is_not_finite_says_why() -> None:
    """It is no failure of the clip either."""
    skimage()
    reference = noise()
    reference[0, 0, 0, 0] = np.nan
    quality = examine(noise(), PRESET, reference)
    assert quality.failures == ()
    assert quality.missing["psnr"] == "The clip or the reference holds values that are not finite"


def test_frames_smaller_than_ssims_window_say_why() -> None:
    """PSNR does not need it."""
    skimage()
    clip = noise()[:, :8]
    quality = examine(clip, PRESET, clip)
    assert quality.scores["psnr"] == PSNR_CEILING
    assert quality.missing["ssim"] == "Frames of 8×64×3 are smaller than its window of 11 pixels"


def test_without_scikit_image_the_scores_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra; nothing else needs it."""
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    quality = examine(noise(), PRESET, noise())
    assert set(quality.scores) == SCORES
    assert "pip install 'wanstore[bench]'" in quality.missing["psnr"]
    assert quality.missing["ssim"] == quality.missing["psnr"]


# A clip of 720p takes gigabytes.


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("compared", [False, True])
def test_memory_beside_the_clip_is_a_few_frames(dtype: str, compared: bool) -> None:
    """Not a copy of it, neither for scores nor against a reference."""
    if compared:
        skimage()
    preset = Preset("larger", width=192, height=112, frames=81)
    clip = noise(preset).astype(dtype)
    examine(clip[:2], preset, clip[:2] if compared else None)  # what is imported is no memory of the clip's
    tracemalloc.start()
    try:
        quality = examine(clip, preset, clip if compared else None)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert quality.failures == ()
    assert peak_bytes < 10 * preset.width * preset.height * 3 * 4
