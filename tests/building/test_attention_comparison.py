"""Choosing an attention backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wanstore.building._attention_comparison import compare_backends
from wanstore.presets import PRESETS, Preset


def test_tokens_are_those_of_the_transformer() -> None:
    """As published for 480p: 13 latent frames of 30 × 52 patches at 3 s."""
    assert [preset.clip.tokens for preset in PRESETS.values()] == [20_280, 32_760, 75_600, 147_600]


def test_on_a_cpu_there_is_nothing_to_compare() -> None:
    """It has one backend."""
    assert compare_backends(None, torch.device("cpu"), PRESETS["480p/3s"]) == {}


@pytest.mark.gpu
def test_on_a_gpu_the_fastest_comes_first(tiny_fp16: Any) -> None:
    """Those that work, with their seconds."""
    import wanstore

    pipe = wanstore.load(tiny_fp16, sealed=False, device="cuda")
    seconds = compare_backends(pipe.transformer, pipe.device, Preset("small", width=128, height=128, frames=5))
    assert "native" in seconds and list(seconds.values()) == sorted(seconds.values())
