"""wanstore.benchmarking.estimate: what a clip takes on a GPU that nothing was measured on."""

from __future__ import annotations

import attrs
import pytest

from wanstore.benchmarking.cost import PRICES
from wanstore.benchmarking.estimate import DATA_SHEET_TFLOPS, clip_seconds, denoising_petaflop
from wanstore.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "petaflop"), [("480p/3s", 12.9), ("480p/5s", 28.3), ("720p/5s", 125), ("720p/10s", 440)]
)
def test_the_arithmetic_of_a_clip_follows_from_the_transformers_shapes(name: str, petaflop: float) -> None:
    """The sums that were made by hand, within one percent."""
    assert denoising_petaflop(PRESETS[name]) == pytest.approx(petaflop, rel=0.01)


def test_without_guidance_a_clip_is_half_the_arithmetic() -> None:
    """A guidance scale of 1 needs no second pass."""
    preset = PRESETS["480p/3s"]
    assert denoising_petaflop(attrs.evolve(preset, guidance_scale=1.0)) * 2 == denoising_petaflop(preset)


def test_an_estimate_spans_what_the_gpu_may_reach() -> None:
    """12.9 PFLOP at a third and at half of an L4's 121 TFLOP/s are nine tenths of the clip."""
    found = clip_seconds(PRESETS["480p/3s"], "L4")
    assert found and [seconds / 60 for seconds in found] == pytest.approx([3.95, 5.9], abs=0.05)


@pytest.mark.parametrize(
    ("name", "seconds"), [("480p/3s", 36.4), ("480p/5s", 71.4), ("720p/5s", 269), ("720p/10s", 880)]
)
def test_what_an_h100_took_is_within_an_eighth_of_its_span(name: str, seconds: float) -> None:
    """The one GPU that was measured: docs/benchmarks.md."""
    quick, slow = clip_seconds(PRESETS[name], "H100") or (0, 0)
    assert 0.88 * quick < seconds < slow


def test_every_gpu_that_has_a_price_can_be_estimated_and_no_other() -> None:
    """Those that Modal rents; a CPU is none."""
    assert set(DATA_SHEET_TFLOPS) == set(PRICES.gpu_second)
    assert clip_seconds(PRESETS["480p/3s"], "") is None
