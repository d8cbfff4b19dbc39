"""How far a task is, as a bar tells it."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from wanstore.cli._terminal import amount_column


@pytest.mark.parametrize(("unit", "text"), [("steps", "12/50 steps"), ("%", "24 %"), ("bytes", "12/50 bytes ?")])
def test_amounts_are_told_in_the_tasks_own_unit(unit: str, text: str) -> None:
    """Counts with their unit, percent, and bytes with their rate, which is not known at first."""
    bars = Progress()
    bars.add_task("t", total=50, completed=12, unit=unit)
    assert str(amount_column().render(bars.tasks[0])) == text
