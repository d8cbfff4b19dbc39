"""The machine that the Modal programs are started from: nothing but modal and what comes with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.examples.account import ONLY_MODAL, ROOT


@pytest.mark.parametrize("version", ["1.4.2", "1.5.9", "0.77"])
def test_an_older_modal_is_one_line_that_names_the_version_needed(version: str) -> None:
    """Before anything is started."""
    program = f"import modal\nmodal.__version__ = {version!r}\nimport modal_common"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ONLY_MODAL), str(ROOT / "examples")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1 and run.stderr.startswith(f"modal {version} is too old, 1.6.0 or newer is needed")
    assert len(run.stderr.splitlines()) == 1


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
