"""What a benchmark found: a row for each preset, and what it was measured on. Plain data, in and out as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from wanstore._json import from_json, to_json
from wanstore.benchmarking._older_reports import upgraded_report
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.benchmarking.safe import SafeChoice, choose_safe
from wanstore.errors import DamagedError, NotSupportedError

SCHEMA_VERSION = 1
_DERIVED = ("safe_preset", "comparison")
"""Keys of a document that follow from the rest, or from another report: not read back."""


@attrs.frozen
class Environment:
    """What rows were measured on, and how. `weights` says what they were, random ones plainly so.

    `memory_cap_gib` is the limit that torch was held to, so that a larger GPU stands in for a smaller one.
    `dtype` names the components that computed in another dtype than float16, as `vae=float32`.
    `memory` is the memory mode that was asked for, "" for `auto`.
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
            raise DamagedError(f"{where} is not a benchmark report ({error})", "Run the benchmark again") from error
        if version != SCHEMA_VERSION:
            raise NotSupportedError(
                f"{where} has schema version {version}, this wanstore reads {SCHEMA_VERSION}", "Run the benchmark again"
            )
        try:
            return from_json(upgraded_report({k: v for k, v in document.items() if k not in _DERIVED}), cls)
        except ValueError as error:
            raise DamagedError(f"{where} is not a benchmark report ({error})", "Run the benchmark again") from error
