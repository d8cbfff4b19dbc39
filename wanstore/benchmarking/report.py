"""The result of a benchmark: a row for each preset, and the safe one among them."""

from __future__ import annotations

import json

import attrs

from wanstore.benchmarking.presets import Preset


@attrs.frozen
class BenchmarkRow:
    """One preset's cost: wall-clock seconds, peak memory in GiB; `failure` says why there is none."""

    preset: Preset
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    failure: str = ""


@attrs.frozen
class BenchmarkReport:
    """All rows, and what they were measured on."""

    device: str
    rows: tuple[BenchmarkRow, ...]

    @property
    def safe_preset(self) -> str | None:
        """The quickest preset that worked; None if none did."""
        worked = [row for row in self.rows if not row.failure]
        return min(worked, key=lambda row: row.seconds).preset.name if worked else None

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps({**attrs.asdict(self), "safe_preset": self.safe_preset}, indent=2)

    def to_markdown(self) -> str:
        """The report as a Markdown table."""
        lines = [
            f"Measured on {self.device}.",
            "",
            "| preset | size | frames | steps | seconds | peak memory GiB | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            size = f"{row.preset.width}×{row.preset.height}"
            cost = ("—", "—") if row.failure else (f"{row.seconds:.2f}", f"{row.peak_memory_gib:.2f}")
            lines.append(
                f"| {row.preset.name} | {size} | {row.preset.frames} | {row.preset.steps} "
                f"| {cost[0]} | {cost[1]} | {row.failure or row.preset.notes} |"
            )
        return "\n".join([*lines, "", f"Safe preset: {self.safe_preset or 'none, every preset failed'}", ""])
