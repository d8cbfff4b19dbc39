"""A benchmarker as a third party may write it: it measures next to nothing, and its report has no steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from wanstore.interfaces import Benchmarker, Progress, Quiet, Report
from wanstore.presets import Preset


@attrs.frozen
class QuickReport:
    rows: tuple[dict[str, Any], ...]

    @property
    def safe_preset(self) -> str | None:
        worked = [row["preset"]["name"] for row in self.rows if row["status"] == "ok"]
        return worked[0] if worked else None

    def to_json(self) -> str:
        return json.dumps({"rows": self.rows, "safe_preset": self.safe_preset})


class QuickBenchmarker(Benchmarker):
    """What the clips' pixels cost, in a unit of its own; more than a billion are too many."""

    def __init__(self, folder: Path = Path(), *, rounds: int = 1) -> None:
        self.folder = folder
        self.rounds = rounds

    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> Report:
        return QuickReport(tuple(self.measure(preset, progress or Quiet()) for preset in presets))

    def measure(self, preset: Preset, progress: Progress) -> dict[str, Any]:
        progress.start(preset.name, 1, "clips")
        pixels = preset.width * preset.height * preset.frames
        progress.advance(preset.name, 1)
        progress.finish(preset.name)
        row: dict[str, Any] = {"preset": {"name": preset.name}, "status": "ok", "rounds": self.rounds}
        if pixels > 1e9:
            return row | {"status": "too large", "reason": f"{pixels} pixels"}
        return row | {"megapixels": pixels / 1e6, "passes": [1, 2]}
