"""Every fault that the project promises to survive, tried: `make test-faults`.

Works in a temporary folder of its own, as a user without privileges, and needs no network. Each kill or error is a fork
that changes that folder alone.
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

from tests.faults.tally import TALLY_NAME, Tally
from tests.unprivileged import can_drop_privileges, run_without_privileges_in

HOSTILE = {
    "tables of hostile Hub answers": ["tests/conversion/hub"],
    "tables of hostile sources": ["tests/conversion/test_plan.py", "tests/building/test_config.py"],
    "tables of hostile stores": [
        "tests/stores/test_local.py",
        "tests/test_manifest.py",
        "tests/conversion/test_journal.py",
    ],
    "tables of hostile files at a load": ["tests/loading/test_load.py"],
    "backends that are wrong": ["tests/testing"],
}
"""Tests that are tables of faults: each test is counted as one."""


def run(*, long: bool) -> Tally:
    """All kinds in a process that may write nothing but a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="wanstore-faults-") as folder:
        command = [sys.executable, "-m", "tests.faults.breaking", folder, *(["--long"] if long else [])]
        done = run_without_privileges_in(Path(folder), command)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        return Tally.from_json(json.loads(Path(folder, TALLY_NAME).read_text()))


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
    if not can_drop_privileges():
        sys.exit("this breaks things and does not run as root: install setpriv, or use another user")
    began = time.monotonic()
    tally = run(long=options.long)
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
