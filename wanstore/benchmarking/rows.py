"""A benchmark's rows: what was measured of each preset. Plain data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import attrs

from wanstore.presets import Preset

PHASES = ("text encoding", "denoising", "decoding", "writing")
FINAL = ("ok", "out of memory", "failed")
"""What another try would find again; a timeout or a crash may have been the machine's fault."""
ENOUGH_ROUNDS = 20
"""A p95 of fewer clips would be a guess."""


@attrs.frozen
class Round:
    """One clip: seconds of each phase. `steps` are the denoising steps that were run, one figure each."""

    text_encoding: float
    steps: tuple[float, ...]
    decoding: float
    writing: float
    seconds: float
    """The whole of it by the wall clock, measuring included."""

    def seconds_at(self, steps: int) -> float:
        """What a clip of so many steps takes: with fewer measured, the rest at their median."""
        missing = steps - len(self.steps)
        return self.seconds + (missing * statistics.median(self.steps) if missing > 0 else 0.0)


@attrs.frozen
class MemoryPeaks:
    """Peaks in GiB: what torch's allocator handed out and reserved, and what the device had in use (NVML).

    On a CPU `allocated` is the process's peak resident set, and the others are None.
    """

    allocated_gib: float
    reserved_gib: float | None = None
    device_gib: float | None = None


@attrs.frozen
class Quality:
    """What can be said of a clip without a model: hard failures, scores, and why a score is missing."""

    failures: tuple[str, ...] = ()
    scores: Mapping[str, float] = attrs.field(factory=dict)
    missing: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class CompiledBlocks:
    """Compiled transformer blocks, beside eager ones in the same process.

    Attributes:
        reason: why blocks ran eagerly after all; then the other figures are empty.
        loading_seconds: what a load took longer for them: torch's compiler imported, functions loaded.
        eager_step_seconds: the median denoising step without them.
        scores: `psnr` and `ssim` of a clip with them against the same clip without.
        compared_steps: denoising steps of these two clips.
    """

    reason: str = ""
    loading_seconds: float = 0.0
    eager_step_seconds: float | None = None
    scores: Mapping[str, float] = attrs.field(factory=dict)
    compared_steps: int = 0


@attrs.frozen
class Lossless:
    """The clip of a lossy preset made again without what makes it so, with the same prompt and seed.

    Attributes:
        seconds: what that clip took.
        scores: `psnr` and `ssim` of the preset's own clip against it.
    """

    seconds: float
    scores: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen
class BenchmarkRow:
    """One preset's result.

    `status` is `ok`, `out of memory`, `timeout`, `crash` or `failed`, and `reason` says more. `rounds` are those
    after the warm-up. `load_seconds` and `first_clip_seconds` count from the start of a process,
    None where the pipeline was loaded before. `energy_joules` is what the GPU spent on a clip. With fewer steps
    measured, it and the first clip are extrapolated as clips are. `attention` is the backend that was used;
    `attention_seconds`, where backends were compared, what one self-attention of the preset's own shape took with
    each that works. `frames` are pictures of the clip and `video` the clip as an mp4, as paths beside the report;
    none and "" where the weights are random. `clip_sha256` is that of the file that the clip was kept in, "" where it
    was not.

    `memory_plan` says which components were offloaded for the last clip; "" where the pipeline has no plan.
    `predicted_gib` are the plan's peaks by phase (text_encoding, denoising, decoding, output), and `phase_peaks_gib`
    the highest that torch's allocator counted in any clip; empty where it isn't used.

    `compiled` is there if compiled blocks were asked for: then all other figures are with them, if they could be used.
    `lossless` is there for a lossy preset.
    """

    preset: Preset
    status: str = "ok"
    reason: str = ""
    rounds: tuple[Round, ...] = ()
    memory: MemoryPeaks | None = None
    quality: Quality | None = None
    energy_joules: float | None = None
    attention: str = ""
    attention_seconds: Mapping[str, float] = attrs.field(factory=dict)
    load_seconds: float | None = None
    first_clip_seconds: float | None = None
    frames: tuple[str, ...] = ()
    video: str = ""
    clip_sha256: str = ""
    memory_plan: str = ""
    predicted_gib: Mapping[str, float] = attrs.field(factory=dict)
    phase_peaks_gib: Mapping[str, float] = attrs.field(factory=dict)
    compiled: CompiledBlocks | None = None
    lossless: Lossless | None = None

    @property
    def worked(self) -> bool:
        return self.status == "ok" and bool(self.rounds)

    @property
    def extrapolated(self) -> bool:
        """Whether fewer steps were measured than the preset has."""
        return any(len(one.steps) < self.preset.steps for one in self.rounds)

    @property
    def seconds_p50(self) -> float:
        """The median clip, at the preset's steps."""
        return statistics.median(self._seconds)

    @property
    def seconds_p95(self) -> float | None:
        """At least 95 % of the clips are as quick (nearest rank); None from fewer than `ENOUGH_ROUNDS`."""
        enough = len(self.rounds) >= ENOUGH_ROUNDS
        return sorted(self._seconds)[math.ceil(0.95 * len(self.rounds)) - 1] if enough else None

    @property
    def seconds_spread(self) -> tuple[float, float]:
        """The quickest and the slowest clip."""
        return min(self._seconds), max(self._seconds)

    @property
    def seconds_at_worst(self) -> float:
        """What a clip has to be planned with: p95, or the slowest one where there are too few for it."""
        return self.seconds_p95 or self.seconds_spread[1]

    @property
    def step_seconds(self) -> float:
        """The median denoising step of all rounds."""
        return statistics.median(step for one in self.rounds for step in one.steps)

    @property
    def compiled_saves_seconds(self) -> float | None:
        """What compiled blocks save of a clip; None where they were not used."""
        eager = self.compiled and self.compiled.eager_step_seconds
        return (eager - self.step_seconds) * self.preset.steps if eager else None

    @property
    def compiled_pays_from(self) -> int | None:
        """The clip of a process by which compiled blocks have saved what loading them took; None if none does."""
        saved = self.compiled_saves_seconds
        return math.ceil(self.compiled.loading_seconds / saved) if self.compiled and saved and saved > 0 else None

    @property
    def _seconds(self) -> list[float]:
        return [one.seconds_at(self.preset.steps) for one in self.rounds]


def phase_seconds(row: BenchmarkRow) -> dict[str, float]:
    """Seconds of each of `PHASES` at the preset's steps, and `rest`: what the clip took besides them.

    With fewer steps measured, denoising is extrapolated as the clip's seconds are.
    """
    rounds = [_phases(one, row.preset.steps) for one in row.rounds]
    return {phase: statistics.median(one[phase] for one in rounds) for phase in (*PHASES, "rest")}


def _phases(one: Round, steps: int) -> dict[str, float]:
    denoising = sum(one.steps) + one.seconds_at(steps) - one.seconds
    phases = dict(zip(PHASES, (one.text_encoding, denoising, one.decoding, one.writing), strict=True))
    return {**phases, "rest": max(one.seconds_at(steps) - sum(phases.values()), 0.0)}
