"""What breaks things itself: jobs, flips and races. `python -m tests.faults.breaking FOLDER [--long]`.

A process of its own, that forks and has no other threads; it refuses to run as root.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.faults.flips import flips
from tests.faults.jobs import errors, kills, make_jobs
from tests.faults.races import races
from tests.faults.tally import Tally
from wanstore.testing.tiny_wan import make_tiny_wan


def break_everything(folder: Path, *, long: bool) -> Tally:
    """All kinds; not `long`, a sample of them."""
    tally = Tally()
    old = make_tiny_wan(folder / "old", dtype="float32", seed=1)
    new = make_tiny_wan(folder / "new", dtype="bfloat16", seed=2)
    for job in make_jobs(old, new, folder):
        kills(job, folder, tally, step=1 if long else 41)
        errors(job, folder, tally, step=2 if long else 97)
    flips(folder / "full", folder, tally, in_files=500 if long else 20, in_manifest=None if long else 500)
    races((folder / "full", folder / "made"), folder, tally, seconds=20 if long else 0.3)
    return tally


if __name__ == "__main__":
    if os.geteuid() == 0:
        sys.exit("this breaks things, and does not run as root")
    sys.stdout.write(json.dumps(break_everything(Path(sys.argv[1]), long="--long" in sys.argv).to_json()))
