"""Reports to test with: figures that are plainly made up, and round."""

from __future__ import annotations

from typing import Any

import attrs

from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.benchmarking.rows import BenchmarkRow, MemoryPeaks, Quality, Round
from wanstore.presets import PRESETS

GPU = Environment(
    device="NVIDIA H100 80GB HBM3",
    memory_gib=80.0,
    measured_at="2026-01-02T03:04:05+00:00",
    command="wanstore bench a-pipeline",
    weights="random fp16",
    machine="Linux x86_64, 16 cores",
    versions={"torch": "2.11.0"},
)


def clip(step: float = 1.0, steps: int = 50, rest: float = 0.0) -> Round:
    """A clip whose phases are round: 0.5 s of text, 2 s of decoding, 1 s of writing."""
    return Round(0.5, (step,) * steps, 2.0, 1.0, 3.5 + step * steps + rest)


def row(name: str = "480p/3s", step: float = 1.0, *, steps: int = 50, **fields: Any) -> BenchmarkRow:
    """A row that worked."""
    usual = BenchmarkRow(PRESETS[name], rounds=(clip(step, steps),), memory=MemoryPeaks(10.0), quality=Quality())
    return attrs.evolve(usual, **fields)


def failed(name: str = "720p/10s", status: str = "out of memory", reason: str = "3 GiB too much") -> BenchmarkRow:
    """A row that did not."""
    return BenchmarkRow(PRESETS[name], status, reason)


def report(*rows: BenchmarkRow, **environment: Any) -> BenchmarkReport:
    """One from an H100, with what is given of the environment changed."""
    return BenchmarkReport(attrs.evolve(GPU, **environment), rows)
