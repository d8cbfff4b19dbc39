"""A worker that dies while it makes, or tries, the function of the preset `deadly`."""

from __future__ import annotations

import os
import signal

import attrs

from wanstore._workers import Send
from wanstore.building._artifacts import file_name
from wanstore.presets import Preset


@attrs.frozen
class Job:
    """As much of a job as it takes."""

    task: str
    presets: tuple[Preset, ...]


def prepare() -> None: ...


def do(job: Job, send: Send) -> None:
    send("made_for", {"device": "made up"})
    for preset in job.presets:
        if job.task == "make" and preset.name == "deadly":
            os.kill(os.getpid(), signal.SIGSEGV)
        if job.task == "try" and preset.name == "deadly to try":
            os.kill(os.getpid(), signal.SIGKILL)
        send({"make": "made", "try": "tried"}[job.task], file_name(preset.clip.shape), preset.name, 0.5)
