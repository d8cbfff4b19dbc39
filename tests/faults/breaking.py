"""What breaks things itself: jobs, flips, races and hostile input. `python -m tests.faults.breaking FOLDER [--long]`.

A process of its own, that forks and has no other threads; it refuses to run as root.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from tests.faults.flips import flips
from tests.faults.hostile import hostile
from tests.faults.jobs import BREAKS, break_job, calls_of, make_jobs, numbers_of
from tests.faults.races import races
from tests.faults.tally import TALLY_NAME, Tally
from wanstore.testing.tiny_wan import make_tiny_wan


def break_everything(folder: Path, *, long: bool) -> Tally:
    """All kinds; not `long`, a sample of them."""
    tally = Tally()
    old = make_tiny_wan(folder / "old", dtype="float32", seed=1)
    new = make_tiny_wan(folder / "new", dtype="bfloat16", seed=2)
    jobs = make_jobs(old, new, folder)
    gc.freeze()  # each fork would copy what it collects
    # The processes are forks of this one, which has torch: each run is a fork of theirs.
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("fork")) as pool:
        broken: list[Future[Tally]] = []
        for job in jobs:
            calls = calls_of(job, folder)
            for kind in BREAKS:
                numbers = numbers_of(calls, kind, long=long, turn=len(broken))
                broken.append(pool.submit(break_job, job, kind, folder, numbers))
        for future in broken:
            tally.add(future.result())
    flips(folder / "full", folder, tally, in_files=500 if long else 20, in_manifest=None if long else 500)
    hostile(folder / "full", new, folder, tally, step=1 if long else 4)
    races(
        (folder / "full", folder / "made"), new, folder, tally, seconds=10 if long else 0.1, at_least=20 if long else 1
    )
    return tally


def main() -> int:
    if os.geteuid() == 0:
        sys.stderr.write("this does not run as root\n")
        return 1
    folder = Path(sys.argv[1])
    tally = break_everything(folder, long="--long" in sys.argv)
    (folder / TALLY_NAME).write_text(json.dumps(tally.to_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
