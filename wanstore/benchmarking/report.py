"""What a benchmark found: a row for each preset, and what it was measured on. Plain data, in and out as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from wanstore._formats._json import from_json, to_json
from wanstore.benchmarking._older_reports import upgraded_report
from wanstore.benchmarking.cold_starts import ColdStarts
from wanstore.benchmarking.cost import PRICES
from wanstore.benchmarking.rows import FINAL, BenchmarkRow
from wanstore.benchmarking.safe import SafeChoice, choose_safe
from wanstore.errors import DamagedError, NotSupportedError
from wanstore.presets import PRESETS

SCHEMA_VERSION = 1


@attrs.frozen
class Environment:
    """What rows were measured on, and how. `weights` says what they were, random ones plainly so.

    `memory_cap_gib` is the limit that torch was held to, so that a larger GPU stands in for a smaller one.
    `model` is the one whose recipe there is, such as T2V-1.3B; "" for another, or one that is cut down.
    `dtype` names the components that computed in another dtype than float16, as `vae=float32`.
    `memory` is the memory mode that was asked for, "" for `auto`.
    """

    device: str
    memory_gib: float
    measured_at: str
    command: str = ""
    weights: str = ""
    model: str = ""
    memory_cap_gib: float | None = None
    dtype: str = ""
    memory: str = ""
    machine: str = ""
    versions: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class BenchmarkReport:
    """All rows, what they were measured on, and cold starts where they were measured too."""

    environment: Environment
    rows: tuple[BenchmarkRow, ...]
    cold_starts: tuple[ColdStarts, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def gpu(self) -> str | None:
        """The price table's name of the GPU that was measured, such as L4; None for another device."""
        return PRICES.gpu_of(self.environment.device)

    @property
    def trained(self) -> bool:
        """Whether clips show what a trained model makes; with random weights only time and memory mean something."""
        return "random" not in self.environment.weights.lower()

    @property
    def full_size(self) -> bool:
        """Whether a whole model made clips of the sizes that the presets have."""
        clips = (row.preset.clip == PRESETS[row.preset.name].clip for row in self.rows if row.preset.name in PRESETS)
        return bool(self.environment.model) and all(clips)

    @property
    def complete(self) -> bool:
        """Whether each preset of production has a row that another try would find again."""
        return set(PRESETS) <= {row.preset.name for row in self.rows if row.status in FINAL}

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
        document = to_json(self)
        # What follows is not read back: it is for programs without cattrs, as one that deploys an endpoint.
        for row, found in zip(document["rows"], self.rows, strict=True):
            row["clip_seconds"] = found.seconds_p50 if found.worked else None
        use = {"gpu": self.gpu, "full_size": self.full_size, "trained": self.trained, "complete": self.complete}
        return json.dumps({**document, "safe_preset": self.safe_preset, **use}, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the report") -> BenchmarkReport:
        """A report from its JSON. Raises `DamagedError` when it is none, `NotSupportedError` for a newer one."""
        try:
            document: Any = json.loads(text)
            version = document["schema_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"{where} is not a benchmark report ({error})", "Run the benchmark again") from error
        if version != SCHEMA_VERSION:
            raise NotSupportedError(
                f"{where} has schema version {version}, this wanstore reads {SCHEMA_VERSION}", "Run the benchmark again"
            )
        try:
            return from_json(upgraded_report(document), cls)
        except ValueError as error:
            raise DamagedError(f"{where} is not a benchmark report ({error})", "Run the benchmark again") from error
