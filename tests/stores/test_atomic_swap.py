"""Swapping two folders: whether a file system can is found out, not assumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanstore.errors import NotSupportedError
from wanstore.stores import _atomic_swap
from wanstore.stores._atomic_swap import check_swap


def ignores_the_flag(one: Path, other: Path) -> None:
    """A plain rename: `other` is gone if it was empty."""
    one.rename(other)


def does_nothing(one: Path, other: Path) -> None:
    """Success, and that is all."""


@pytest.mark.parametrize("swap", [ignores_the_flag, does_nothing])
def test_a_swap_that_is_none_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: object) -> None:
    """Before anything that matters is swapped; nothing is left of the trial."""
    monkeypatch.setattr(_atomic_swap, "swap", swap)
    with pytest.raises(NotSupportedError, match="cannot swap two folders in one step"):
        check_swap(tmp_path)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_an_earlier_trial_do_no_harm(tmp_path: Path) -> None:
    """A run that was killed in the middle of it."""
    (tmp_path / ".swap-b").mkdir()
    (tmp_path / ".swap-b/was-a").touch()
    check_swap(tmp_path)
    assert not list(tmp_path.iterdir())
