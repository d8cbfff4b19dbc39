"""What a benchmark found: a row for each preset, and what it was measured on. Plain data, in and out as JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

import attrs

from wanstore._json import from_json, to_json
from wanstore.benchmarking.safe import SafeChoice, choose_safe
from wanstore.errors import DamagedError, NotSupportedError
from wanstore.presets import Preset

SCHEMA_VERSION = 1
_DERIVED = ("safe_preset", "comparison")
"""Keys of a document that follow from the rest, or from another report: not read back."""


@attrs.frozen
class Round:
    """One clip: seconds of each stage. `steps` are the denoising steps that were run, one figure each."""

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
class Memory:
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
class BenchmarkRow:
    """One preset's result.

    `status` is `ok`, `out of memory`, `timeout`, `crash` or `failed`, and `reason` says more. `rounds` are those
    after the warm-up. `load_seconds` and `first_clip_seconds` count from the start of the process that measured,
    None where the pipeline was loaded before. `energy_joules` is what the GPU spent on a clip. With fewer steps
    measured, it and the first clip are extrapolated as clips are. `attention` is the backend that was used;
    `attention_seconds`, where backends were compared, what one self-attention of the preset's own shape took with
    each that works. `frames` are pictures of the clip, as paths beside the report; `clip_sha256` is that of the file
    that the clip was kept in, "" where it was not.

    `memory_plan` says where the pipeline's parts were for the last clip; "" where it has no plan. `predicted_gib` are
    the peaks that the plan counts on, by stage (text, denoising, decoding, output), and `stage_peaks_gib` the highest
    of all clips, as torch's allocator handed them out; empty where it isn't used.
    """

    preset: Preset
    status: str = "ok"
    reason: str = ""
    rounds: tuple[Round, ...] = ()
    memory: Memory | None = None
    quality: Quality | None = None
    energy_joules: float | None = None
    attention: str = ""
    attention_seconds: Mapping[str, float] = attrs.field(factory=dict)
    load_seconds: float | None = None
    first_clip_seconds: float | None = None
    frames: tuple[str, ...] = ()
    clip_sha256: str = ""
    memory_plan: str = ""
    predicted_gib: Mapping[str, float] = attrs.field(factory=dict)
    stage_peaks_gib: Mapping[str, float] = attrs.field(factory=dict)

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
    def seconds_p95(self) -> float:
        """At least 95 % of the clips are as quick (nearest rank); with fewer than twenty rounds the slowest one."""
        return sorted(self._seconds)[math.ceil(0.95 * len(self.rounds)) - 1]

    @property
    def step_seconds(self) -> float:
        """The median denoising step of all rounds."""
        return statistics.median(step for one in self.rounds for step in one.steps)

    @property
    def _seconds(self) -> list[float]:
        return [one.seconds_at(self.preset.steps) for one in self.rounds]


@attrs.frozen
class Environment:
    """What rows were measured on, and how. `weights` says what they were, random ones plainly so.

    `memory_cap_gib` is the limit that torch was held to, so that a larger GPU stands in for a smaller one.
    `dtype` names the components that computed in another dtype than float16, as `vae=float32`.
    `memory` is how much of the device the pipeline was asked to take, "" for what fits.
    """

    device: str
    memory_gib: float
    measured_at: str
    command: str = ""
    weights: str = ""
    memory_cap_gib: float | None = None
    dtype: str = ""
    memory: str = ""
    machine: str = ""
    versions: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class BenchmarkReport:
    """All rows, and what they were measured on."""

    environment: Environment
    rows: tuple[BenchmarkRow, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def safe(self) -> SafeChoice:
        """The preset that degraded mode falls back to, with the reasons."""
        cap = self.environment.memory_cap_gib
        return choose_safe(self.rows, cap if cap is not None else self.environment.memory_gib)

    @property
    def safe_preset(self) -> str | None:
        """Its name; None if no preset qualifies."""
        return self.safe.preset

    def to_json(self) -> str:
        """The report as a JSON document; `from_json` reads it."""
        return json.dumps({**to_json(self), "safe_preset": self.safe_preset}, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the report") -> BenchmarkReport:
        """A report from its JSON. Raises `DamagedError` when it is none, `NotSupportedError` for a newer one."""
        try:
            document: Any = json.loads(text)
            version = document["schema_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"{where} is no benchmark report ({error})", "Run the benchmark again") from error
        if version != SCHEMA_VERSION:
            raise NotSupportedError(
                f"{where} has schema version {version}, this wanstore reads {SCHEMA_VERSION}", "Run the benchmark again"
            )
        try:
            return from_json({k: v for k, v in document.items() if k not in _DERIVED}, cls)
        except ValueError as error:
            raise DamagedError(f"{where} is no benchmark report ({error})", "Run the benchmark again") from error

    def to_markdown(self) -> str:
        """The report as a Markdown table with the safe preset and its reasons."""
        from wanstore.benchmarking.page import summary

        return summary(self)
