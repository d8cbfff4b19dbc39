"""Every fault that the project promises to survive, tried: `make test-faults`.

Works in a temporary folder of its own, and needs no network. Each kill or error is a fork that changes that alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import jobs as broken_jobs
from tests.faults.flips import flips
from tests.faults.races import races
from tests.faults.tally import Tally
from wanstore.testing.tiny_wan import make_tiny_wan

HOSTILE = {
    "hostile Hub answers": ["tests/conversion/hub"],
    "hostile sources": ["tests/conversion/test_plan.py", "tests/building/test_config.py"],
    "hostile stores": ["tests/stores/test_local.py", "tests/test_manifest.py", "tests/conversion/test_journal.py"],
    "hostile files at a load": ["tests/loading/test_load.py"],
    "backends that are wrong": ["tests/testing"],
}
"""Tests that are tables of faults: each test is counted as one."""


def run(folder: Path, tally: Tally, *, long: bool) -> None:
    """All kinds; not `long`, a sample of them."""
    old = make_tiny_wan(folder / "old", dtype="float32", seed=1)
    new = make_tiny_wan(folder / "new", dtype="bfloat16", seed=2)
    jobs = broken_jobs.make_jobs(old, new, folder)
    for job in jobs:
        broken_jobs.kills(job, folder, tally, step=1 if long else 41)
        broken_jobs.errors(job, folder, tally, step=2 if long else 97)
    flips(folder / "full", folder, tally, in_files=500 if long else 20, in_manifest=None if long else 500)
    races((folder / "full", folder / "made"), folder, tally, seconds=20 if long else 0.3)


def run_tables(tally: Tally) -> None:
    """The tests that are tables of faults."""
    for kind, paths in HOSTILE.items():
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        passed = re.search(r"(\d+) passed", done.stdout)
        tally.tried(kind, int(passed[1]) if passed else 0)
        if done.returncode:
            tally.failed(kind, done.stdout[-2000:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--long", action="store_true", help="try every fault, not a sample (under 30 minutes)")
    parser.add_argument("--out", type=Path, help="write the counts as JSON to this file")
    options = parser.parse_args()
    began, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(prefix="wanstore-faults-") as folder:
        run(Path(folder), tally, long=options.long)
    if options.long:
        run_tables(tally)
    for kind, count, failed in tally.rows():
        sys.stdout.write(f"{kind:<40} {count:>7} tried {failed:>4} broke a promise\n")
    for kind, failures in tally.failures.items():
        sys.stdout.write(f"\n{kind}:\n" + "".join(f"  {failure}\n" for failure in failures[:10]))
    total, minutes = sum(tally.counts.values()), (time.monotonic() - began) / 60
    sys.stdout.write(f"\n{total} faults in {minutes:.1f} minutes: {'all held' if tally.ok else 'NOT all held'}\n")
    if options.out:
        options.out.write_text(json.dumps(tally.to_json(), indent=2) + "\n")
    return 0 if tally.ok else 1


if __name__ == "__main__":
    sys.exit(main())
