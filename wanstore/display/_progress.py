"""Progress as people see it: bars on a terminal and in notebooks, lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from wanstore.display._text import escaped
from wanstore.interfaces import Progress, Quiet, WeightStore

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

_SPEED_SECONDS = 120
"""The time left is estimated over this long: a denoising step may take half a minute."""


@contextmanager
def shown(progress: Progress | bool | None, *stores: WeightStore | None) -> Iterator[Progress]:
    """What a caller's `progress` stands for, for the length of a block: True shows it, False and None do not.

    The stores tell it of what they move by themselves.
    """
    with ExitStack() as stack:
        heard = stack.enter_context(TerminalProgress()) if progress is True else progress
        if heard:
            for store in filter(None, stores):
                before = store.progress
                with suppress(AttributeError):  # a class may forbid it
                    store.progress = heard
                    stack.callback(setattr, store, "progress", before)
        yield heard or Quiet()


class TerminalProgress:
    """A `Progress` with a bar for each task on a terminal and in notebooks, and only messages elsewhere; all on stderr.

    In a notebook it needs ipywidgets, and says so where there is none.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        notebook = _in_notebook()
        if notebook and importlib.util.find_spec("ipywidgets") is None:
            self.message("Progress bars in a notebook need ipywidgets: pip install ipywidgets")
        elif notebook or sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                amount_column(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                speed_estimate_period=_SPEED_SECONDS,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        with self._lock:
            if self._bars is None:
                return
            if task in self._tasks:
                self._bars.reset(self._tasks[task], total=total)
            else:
                self._tasks[task] = self._bars.add_task(escaped(task), total=total, unit=unit)

    def advance(self, task: str, amount: int) -> None:
        if self._bars is not None and task in self._tasks:
            self._bars.advance(self._tasks[task], amount)

    def finish(self, task: str) -> None:
        with self._lock:
            if self._bars is not None and task in self._tasks:
                self._bars.remove_task(self._tasks.pop(task))

    def message(self, text: str) -> None:
        text = escaped(text)  # a server's words may be in it
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False, emoji=False)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def _in_notebook() -> bool:
    """Whether output goes to a notebook's page, as rich sees it."""
    if "IPython" not in sys.modules:  # rich need not be imported to know
        return False
    from rich.console import Console

    return Console().is_jupyter


def amount_column() -> ProgressColumn:
    """The progress of a task in its unit: bytes with their rate, percent, or a count."""
    from rich.progress import DownloadColumn, ProgressColumn, Task, TransferSpeedColumn
    from rich.text import Text

    size, rate = DownloadColumn(), TransferSpeedColumn()

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            unit = task.fields["unit"]
            if unit == "bytes":
                return Text.assemble(size.render(task), " ", rate.render(task))
            if unit == "%":
                return Text(f"{task.percentage:.0f} %", style="progress.percentage")
            return Text(f"{task.completed:.0f}/{task.total:.0f} {unit}", style="progress.download")

    return Amount()
