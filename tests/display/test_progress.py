"""Progress as people see it: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from rich.progress import Progress

import wanstore
from wanstore.display import _progress
from wanstore.display._progress import amount_column, shown
from wanstore.errors import NotFoundError


@pytest.mark.parametrize(("unit", "text"), [("steps", "12/50 steps"), ("%", "24 %"), ("bytes", "12/50 bytes ?")])
def test_amounts_are_told_in_the_tasks_own_unit(unit: str, text: str) -> None:
    """Counts with their unit, percent, and bytes with their rate, which is not known at first."""
    bars = Progress()
    bars.add_task("t", total=50, completed=12, unit=unit)
    assert str(amount_column().render(bars.tasks[0])) == text


class Terminal(io.StringIO):
    """What stderr is when somebody looks at it."""

    def isatty(self) -> bool:
        return True


def everything(stored: Path, target: Path) -> None:
    """Whatever is public and takes long, with `progress=True`."""
    wanstore.copy(stored.name, stored.parent, target, progress=True)
    assert wanstore.verify(stored.name, store=target, progress=True).ok
    wanstore.load(stored, device="cpu", verify=True, progress=True)


def test_true_shows_bars_on_a_terminal(tiny_sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each task, by its name; the terminal is left as it was."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    everything(tiny_sealed, tmp_path / "there")
    seen = terminal.getvalue()
    assert all(f"{task} tiny " in seen for task in ("copy", "verify", "load")) and "━" in seen
    assert seen.count("\x1b[?25h") == seen.count("\x1b[?25l") > 0, "the cursor is back"


def test_true_is_lines_elsewhere(tiny_sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No bars in a log; what is worth a line has one. False is as if it were left out."""
    everything(tiny_sealed, tmp_path / "there")
    wanstore.copy("tiny", tiny_sealed.parent, tmp_path / "there", progress=False)
    assert capsys.readouterr() == ("", "")
    wanstore.copy("tiny", tiny_sealed.parent, tmp_path / "there", progress=True)
    assert capsys.readouterr().err == "tiny is already there, with the same digest: nothing to do\n"


def test_names_and_messages_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no markup and no pictures, and do not steer the terminal."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with shown(True) as progress:
        progress.start("a[/b]\x1b[2J :cat:", 10)
        progress.message("c[/d]\x1b[2J :dog:")
    seen = terminal.getvalue()
    assert r"a[/b]\x1b[2J :cat:" in seen and r"c[/d]\x1b[2J :dog:" in seen and "\x1b[2J" not in seen


def test_setup_takes_it_too(tiny_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bar for what is converted."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    wanstore.setup(str(tiny_fp32), tmp_path, name="w", progress=True)
    assert "convert " in terminal.getvalue()


def test_the_terminal_is_left_as_it_was_by_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor is back."""
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with pytest.raises(NotFoundError):
        wanstore.verify("w", store=tmp_path, progress=True)
    assert terminal.getvalue().endswith("\x1b[?25h")


def test_a_notebook_without_widgets_says_what_bars_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages are lines there."""
    monkeypatch.setattr(_progress, "_in_notebook", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with shown(True) as progress:
        progress.start("load", 10)
        progress.message("half of it")
    assert capsys.readouterr().err.splitlines()[1:] == ["half of it"]
    with shown(True):
        assert "pip install ipywidgets" in capsys.readouterr().err
