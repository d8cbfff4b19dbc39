"""Where a clip's time goes, in the median of its rounds."""

from __future__ import annotations

import statistics

from wanstore.benchmarking.report import BenchmarkRow, Round

STAGES = ("text", "denoising", "decoding", "writing")


def stage_seconds(row: BenchmarkRow) -> dict[str, float]:
    """Seconds of each of `STAGES` at the preset's steps, and `rest`: what the clip took besides them.

    With fewer steps measured, denoising is extrapolated as the clip's seconds are.
    """
    rounds = [_stages(one, row.preset.steps) for one in row.rounds]
    return {stage: statistics.median(one[stage] for one in rounds) for stage in (*STAGES, "rest")}


def _stages(one: Round, steps: int) -> dict[str, float]:
    denoising = sum(one.steps) + one.seconds_at(steps) - one.seconds
    stages = {"text": one.text_encoding, "denoising": denoising, "decoding": one.decoding, "writing": one.writing}
    return {**stages, "rest": max(one.seconds_at(steps) - sum(stages.values()), 0.0)}
