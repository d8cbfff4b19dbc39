"""A clip of a tiny pipeline as it comes and as it is measured: what measuring costs, on a GPU where there is one.

python -m pytest benchmarks/test_presets.py -m ""

With --benchmark-json FILE the results are kept, with the device, its peak memory and the versions in `extra_info`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import WanPipeline

import wanstore
from wanstore.benchmarking.measure._clip import PROMPT, measure_clip, watch_memory
from wanstore.benchmarking.measure._pipeline_benchmarker import describe
from wanstore.generation import generate, write_clip
from wanstore.interfaces import Quiet
from wanstore.presets import Preset
from wanstore.testing.tiny_wan import make_tiny_wan

PRESET = Preset("tiny", width=32, height=32, frames=5, steps=4)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> WanPipeline:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_wan(folder)
    return wanstore.load(folder, sealed=False, device="cuda" if torch.cuda.is_available() else "cpu")


def test_clip(benchmark: Any, pipe: WanPipeline, tmp_path: Path) -> None:
    """As anyone makes one."""
    run(benchmark, pipe, lambda: write_clip(generate(pipe, PROMPT, PRESET), tmp_path / "clip.mp4"))


def test_clip_measured(benchmark: Any, pipe: WanPipeline) -> None:
    """The same with its stages told apart: the difference is what measuring costs."""
    takes = itertools.count(1)
    run(benchmark, pipe, lambda: measure_clip(pipe, PRESET, take=next(takes), progress=Quiet()))


def run(benchmark: Any, pipe: WanPipeline, make: Any) -> None:
    with watch_memory(pipe.device) as watch:
        benchmark.pedantic(make, rounds=10, warmup_rounds=2)
        memory = watch.peaks()
    environment = describe(pipe.device)
    benchmark.extra_info |= {
        "device": environment.device,
        "machine": environment.machine,
        "memory": attrs.asdict(memory),
        "versions": dict(environment.versions),
        "preset": attrs.asdict(PRESET),
    }
