"""Benchmarkers that are wrong in one way each, and the test of `BenchmarkerTests` that must say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs

from tests.testing.quick_benchmarker import QuickBenchmarker, QuickReport
from wanstore.errors import DeviceMemoryError
from wanstore.interfaces import Progress, Quiet, Report
from wanstore.presets import Preset


@attrs.frozen
class SpoiltReport(QuickReport):
    """Says another safe preset, or another document."""

    said_safe: str | None = None
    document: str = ""

    @property
    def safe_preset(self) -> str | None:
        return self.said_safe or super().safe_preset

    def to_json(self) -> str:
        return self.document or super().to_json()


class WrongBenchmarker(QuickBenchmarker):
    """Right, but for what a subclass changes; `caught_by` is the test that must fail."""

    caught_by: ClassVar[str]

    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> Report:
        rows = [self.measure(preset, progress or Quiet()) for preset in presets]
        return self.report(rows)

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        return QuickReport(tuple(rows))


class SortsItsRows(WrongBenchmarker):
    """The order of the presets is lost."""

    caught_by = "test_each_preset_is_a_row_of_the_json_in_their_order"

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        return QuickReport(tuple(sorted(rows, key=lambda row: str(row["preset"]["name"]))))


class WritesNoJson(WrongBenchmarker):
    """Python's own notation looks similar."""

    caught_by = "test_each_preset_is_a_row_of_the_json_in_their_order"

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        return SpoiltReport(tuple(rows), document=str({"rows": rows, "safe_preset": None}))


class StopsAtAFailure(WrongBenchmarker):
    """What was measured until then is lost."""

    caught_by = "test_a_preset_that_fails_is_a_row"

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        if any(row["status"] != "ok" for row in rows):
            raise DeviceMemoryError("out of memory")
        return super().report(rows)


class LeavesOutWhatFailed(WrongBenchmarker):
    """The report looks as if it had not been asked for."""

    caught_by = "test_a_preset_that_fails_is_a_row"

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        return super().report([row for row in rows if row["status"] == "ok"])


class NominatesWhatFailed(WrongBenchmarker):
    """The first preset is safe, whatever came of it."""

    caught_by = "test_the_safe_preset_is_one_that_worked_or_none"

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        return SpoiltReport(tuple(rows), said_safe=rows[0]["preset"]["name"])


class NominatesTheUnmeasured(WrongBenchmarker):
    """A preset is safe by decree."""

    caught_by = "test_no_presets_give_an_empty_report"

    def report(self, rows: list[dict[str, Any]]) -> QuickReport:
        return SpoiltReport(tuple(rows), said_safe="480p/3s")


class NeverFinishes(WrongBenchmarker):
    """A bar stays on the terminal."""

    caught_by = "test_progress_that_begins_also_ends"

    def measure(self, preset: Preset, progress: Progress) -> dict[str, Any]:
        progress.start("forever", 1)
        return super().measure(preset, progress)


class SaysNothing(WrongBenchmarker):
    """Nobody knows whether it still works."""

    caught_by = "test_progress_that_begins_also_ends"

    def measure(self, preset: Preset, progress: Progress) -> dict[str, Any]:
        return super().measure(preset, Quiet())


WRONG = [one for one in list(globals().values()) if isinstance(one, type) and hasattr(one, "caught_by")]
