"""A sample of every fault; `make test-faults` tries them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_sample_of_every_fault_holds() -> None:
    """In a process of its own, which forks and has no other threads."""
    command = [sys.executable, "-m", "tests.faults"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout + run.stderr
