"""What a clip takes on a GPU that nothing was measured on: its arithmetic and a data sheet, worked out.

Needs attrs alone, so that a machine with nothing but `modal` can plan with it.
"""

from __future__ import annotations

from wanstore.presets import Preset

DATA_SHEET_TFLOPS = {
    "T4": 65.0,
    "L4": 121.0,
    "A10": 70.0,
    "L40S": 362.0,
    "A100-40GB": 312.0,
    "A100-80GB": 312.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
}
"""Dense float16 with float32 sums, by Modal's names of GPUs; an A10 there is the A10G of AWS. From the data sheets."""

REACHED = (1 / 3, 1 / 2)
"""The share of it that denoising is taken to reach. An H100 reached 0.39 to 0.51 (docs/benchmarks.md)."""

DENOISING_SHARE = 0.9
"""Of a clip's seconds, at the least: 0.89 to 0.97 on an H100. The rest is text encoding, decoding and writing."""

_LAYERS, _WIDTH, _FEED_FORWARD, _TEXT_TOKENS = 30, 1536, 8960, 512
"""Wan 2.1 1.3B: transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, and the length prompts are padded to."""


def clip_seconds(preset: Preset, gpu: str) -> tuple[float, float] | None:
    """A clip's seconds in a running container, at the quick and the slow end; None for a GPU without a data sheet here.

    `gpu` is Modal's name of it. The preset's guidance scale and steps are counted as they are.
    """
    tflops = tflops_of(gpu)
    if tflops is None:
        return None
    slow, quick = tflops
    teraflop = denoising_petaflop(preset) * 1000 / DENOISING_SHARE
    return teraflop / quick, teraflop / slow


def tflops_of(gpu: str) -> tuple[float, float] | None:
    """TFLOP/s that a GPU is taken to reach, at the slow and the quick end."""
    if gpu not in DATA_SHEET_TFLOPS:
        return None
    slow, quick = (share * DATA_SHEET_TFLOPS[gpu] for share in REACHED)
    return slow, quick


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
