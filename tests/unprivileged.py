"""Programs that are wrong or destructive on purpose: run by a user who may write nothing but one temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOBODY = 65534
READS_ALL = "-all,+dac_read_search"
"""The one capability that is kept: the interpreter may lie where only root can read. It changes nothing."""


def can_drop_privileges() -> bool:
    """Whether there is nothing to drop, or a tool that drops it."""
    return os.geteuid() != 0 or shutil.which("setpriv") is not None


def run_without_privileges_in(
    folder: Path, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` in `folder`, which becomes its home: as nobody, when this process is root's."""
    command = list(command)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        command = [
            "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
            f"--inh-caps={READS_ALL}", f"--ambient-caps={READS_ALL}", f"--bounding-set={READS_ALL}", *command,
        ]  # fmt: skip
    own = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    given = {**os.environ, **own, **(environment or {})}
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)
