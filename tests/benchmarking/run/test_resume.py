"""Rows that outlive their run."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanstore.benchmarking.rows import BenchmarkRow, Round
from wanstore.benchmarking.run._resume import SavedRows
from wanstore.presets import PRESETS

ROW = BenchmarkRow(
    PRESETS["480p/3s"], rounds=(Round(1.0, (0.5, 0.25), 1.0, 0.125, 3.0),), attention_seconds={"native": 1.5}
)


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    """In another process, from the file, by its key alone."""
    SavedRows(tmp_path / "new/rows.json").keep("key", ROW)
    found = SavedRows(tmp_path / "new/rows.json")
    assert found.get("key") == ROW and found.get("other") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.json"]


@pytest.mark.parametrize(
    ("status", "final"), [("out of memory", True), ("failed", True), ("timeout", False), ("crash", False)]
)
def test_what_may_have_been_the_machines_fault_is_tried_again(tmp_path: Path, status: str, final: bool) -> None:
    """A timeout or a crash is no result for good."""
    rows = SavedRows(tmp_path / "rows.json")
    rows.keep("key", BenchmarkRow(PRESETS["480p/3s"], status, "why"))
    assert (rows.get("key") is not None) == final


def test_the_file_goes_with_its_last_row(tmp_path: Path) -> None:
    """Rows of other runs stay."""
    rows = SavedRows(tmp_path / "rows.json")
    rows.keep("a", ROW)
    rows.keep("b", ROW)
    rows.drop(["a"])
    assert SavedRows(tmp_path / "rows.json").get("b") == ROW
    rows.drop(["b", "never there"])
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"key": {"preset": 1}}', "{"])
def test_a_file_that_is_no_such_file_is_as_if_absent(tmp_path: Path, text: str) -> None:
    """It costs a measurement, and not the run."""
    (tmp_path / "rows.json").write_text(text)
    assert SavedRows(tmp_path / "rows.json").get("key") is None
