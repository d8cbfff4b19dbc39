"""How much arithmetic a clip is, and what another GPU would take for it: worked out, not measured."""

from __future__ import annotations

import attrs

from wanstore.presets import PRESETS, Preset

L4_TFLOPS = (40.0, 60.0)
"""What an L4 is taken to reach, in TFLOP/s: a third to a half of the 121 of its data sheet (dense fp16)."""

_LAYERS, _WIDTH, _FEED_FORWARD, _TEXT_TOKENS = 30, 1536, 8960, 512
"""Wan 2.1 1.3B: transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, and the length prompts are padded to."""


@attrs.frozen
class Estimate:
    """Seconds of a clip's denoising at the quick and the slow end of a range of TFLOP/s."""

    preset: Preset
    petaflop: float
    quick_seconds: float
    slow_seconds: float


def estimate(preset: Preset, tflops: tuple[float, float] = L4_TFLOPS) -> Estimate | None:
    """For one of the package's presets; None for a size that is none of theirs, such as a tiny pipeline's."""
    sizes = {(one.width, one.height, one.frames) for one in PRESETS.values()}
    if (preset.width, preset.height, preset.frames) not in sizes:
        return None
    petaflop = denoising_petaflop(preset)
    slow, quick = tflops
    return Estimate(preset, petaflop, petaflop * 1000 / quick, petaflop * 1000 / slow)


def denoising_petaflop(preset: Preset) -> float:
    """Multiplications and additions of all denoising steps of Wan 2.1 1.3B, in 10¹⁵.

    With guidance each step runs twice.
    """
    tokens = preset.clip.tokens
    # A multiplication and an addition for each weight that a token meets: q, k, v and output of self-attention, q and
    # output of cross-attention, and the two matrices of the feed-forward.
    weights = 2 * (6 * _WIDTH**2 + 2 * _WIDTH * _FEED_FORWARD)
    # Scores and their sum of values, over all tokens and over the prompt's.
    attention = 4 * _WIDTH * (tokens + _TEXT_TOKENS)
    # The prompt's own k and v.
    text = 2 * 2 * _WIDTH**2 * _TEXT_TOKENS
    a_pass = _LAYERS * (tokens * (weights + attention) + text)
    passes = 2 if preset.guidance_scale > 1 else 1
    return a_pass * passes * preset.steps / 1e15
