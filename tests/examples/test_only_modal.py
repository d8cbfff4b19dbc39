"""The machine that the Modal programs are started from: nothing but modal and what comes with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.examples.account import ONLY_MODAL


@pytest.mark.parametrize(
    ("module", "there"),
    [("modal", True), ("attrs", True), ("rich", True), ("wanstore", True),
     ("torch", False), ("cattrs", False), ("pydantic", False), ("numpy", False), ("huggingface_hub", False)],
)  # fmt: skip
def test_it_imports_what_modal_needs_and_nothing_else(module: str, there: bool) -> None:
    """Or the tests of the programs would prove nothing."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env={**os.environ, "PYTHONPATH": str(ONLY_MODAL)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode == 0) == there, run.stderr
    assert there or f"No module named {module!r}" in run.stderr
