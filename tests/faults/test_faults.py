"""A sample of every fault; `make test-faults` tries them all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unprivileged import ROOT, can_drop_privileges


@pytest.mark.timeout(300)
def test_a_sample_of_every_fault_holds() -> None:
    """In a process of its own, which forks and has no other threads."""
    if not can_drop_privileges():
        pytest.skip("setpriv is not installed, and what breaks things does not run as root")
    command = [sys.executable, "-m", "tests.faults"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
