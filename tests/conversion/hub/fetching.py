"""A fetch beside the test: in a thread that is stopped, or in a process that is killed; and what it tells."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from wanstore.conversion.hub import HubSource
from wanstore.errors import WanstoreError
from wanstore.interfaces import Quiet
from wanstore.testing.hub import LoopbackHub


@attrs.define
class Heard(Quiet):
    """A progress that remembers."""

    totals: dict[str, int] = attrs.field(factory=dict)
    done: dict[str, int] = attrs.field(factory=dict)
    messages: list[str] = attrs.field(factory=list)

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.totals[task], self.done[task] = total, 0

    def advance(self, task: str, amount: int) -> None:
        self.done[task] += amount

    def message(self, text: str) -> None:
        self.messages.append(text)


class Fetching(threading.Thread):
    """`source.fetch` in a thread, which has begun; `error` is what it raised."""

    def __init__(self, source: HubSource, path: str, into: Path, progress: Heard) -> None:
        super().__init__()
        self._source, self._path, self._into, self._progress = source, path, into, progress
        self.error: WanstoreError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._source.fetch(self._path, self._into, self._progress)
        except WanstoreError as error:
            self.error = error


def start_process(
    hub: LoopbackHub, repo: str, path: str, into: Path, limits: str, *, xet: bool
) -> subprocess.Popen[bytes]:
    """A fetch in a process of its own; `limits` are the arguments of `Limits`."""
    script = (
        "import sys; from pathlib import Path; from wanstore.interfaces import Quiet\n"
        "from wanstore.conversion.hub import HubSource, Limits\n"
        f"source = HubSource({repo!r}, limits=Limits({limits}))\n"
        f"source.fetch({path!r}, Path(sys.argv[1]), Quiet())"
    )
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(into), "HF_HUB_DISABLE_XET": "0" if xet else "1"}
    return subprocess.Popen([sys.executable, "-c", script, str(into)], env={**os.environ, **variables})


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
