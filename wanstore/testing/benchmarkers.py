"""What every benchmarker must do, as tests. A benchmarker's author subclasses `BenchmarkerTests` with one fixture:

    class TestMyBenchmarker(BenchmarkerTests):
        @pytest.fixture
        def benchmarker(self, pipeline_folder): return MyBenchmarker(pipeline_folder)

They measure tiny clips of two denoising steps, and try one that no machine has the memory for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from wanstore.interfaces import Benchmarker, Report
from wanstore.presets import Preset


class RecordedProgress:
    """A `Progress` that keeps what it receives."""

    def __init__(self) -> None:
        self.open: dict[str, int] = {}
        self.finished: list[str] = []
        self.unknown: list[str] = []

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.open[task] = total

    def advance(self, task: str, amount: int) -> None:
        if task not in self.open:
            self.unknown.append(task)

    def finish(self, task: str) -> None:
        self.open.pop(task, None)
        self.finished.append(task)

    def message(self, text: str) -> None: ...


def rows_of(report: Report) -> list[tuple[str, bool]]:
    """Each row of the report's JSON: the preset's name, and whether it worked."""
    return [(row["preset"]["name"], row["status"] == "ok") for row in json.loads(report.to_json())["rows"]]


class BenchmarkerTests:
    """The behaviour suite; override the `benchmarker` fixture, and the presets if yours needs others."""

    @pytest.fixture
    def benchmarker(self) -> Benchmarker:
        raise NotImplementedError("override the `benchmarker` fixture")

    @pytest.fixture
    def presets(self) -> Sequence[Preset]:
        """Two that work, not sorted."""
        return [Preset(name, width=32, height=32, frames=5, steps=2) for name in ("second", "first")]

    @pytest.fixture
    def failing(self) -> Preset:
        """One that cannot work: its latents alone would take petabytes."""
        return Preset("absurd", width=16_000_000, height=16_000_000, frames=5, steps=2)

    def test_each_preset_is_a_row_of_the_json_in_their_order(
        self, benchmarker: Benchmarker, presets: Sequence[Preset]
    ) -> None:
        """One document, with the safe preset, for whoever reads it without wanstore."""
        report = benchmarker.run(presets)
        document: dict[str, Any] = json.loads(report.to_json())
        assert rows_of(report) == [(preset.name, True) for preset in presets]
        assert document["safe_preset"] == report.safe_preset

    def test_a_preset_that_fails_is_a_row(
        self, benchmarker: Benchmarker, presets: Sequence[Preset], failing: Preset
    ) -> None:
        """It is no error, and those after it are measured all the same."""
        report = benchmarker.run([failing, presets[0]])
        assert rows_of(report) == [(failing.name, False), (presets[0].name, True)]

    def test_the_safe_preset_is_one_that_worked_or_none(
        self, benchmarker: Benchmarker, presets: Sequence[Preset], failing: Preset
    ) -> None:
        """Degraded mode falls back to it: what failed, or was not measured, will not do."""
        assert benchmarker.run([failing, presets[0]]).safe_preset in (presets[0].name, None)
        assert benchmarker.run([failing]).safe_preset is None

    def test_no_presets_give_an_empty_report(self, benchmarker: Benchmarker) -> None:
        """Nothing was measured, so nothing is safe."""
        report = benchmarker.run([])
        assert rows_of(report) == [] and report.safe_preset is None

    def test_progress_that_begins_also_ends(self, benchmarker: Benchmarker, presets: Sequence[Preset]) -> None:
        """A clip takes minutes: something is reported, and no bar stays behind."""
        progress = RecordedProgress()
        benchmarker.run(presets[:1], progress=progress)
        assert progress.finished and not progress.open and not progress.unknown
