"""The store in a package of its own: a stranger installs it, proves it with the suite, and uses it by its URL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unprivileged import ROOT, can_drop_privileges, run_without_privileges_in
from wanstore.testing.manifests import seal_as_is

EXAMPLE = ROOT / "examples/third_party_store"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs Python where the package is installed, as a user who may write nothing but one temporary folder."""
    pytest.importorskip("setuptools")
    if not can_drop_privileges():
        pytest.skip("setpriv is not installed, and the suite asks for names that lead out of a store")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        installed = subprocess.run(
            [*pip, "--target", folder / "site", folder / "source"], capture_output=True, text=True, check=False
        )
        assert installed.returncode == 0, installed.stdout + installed.stderr
        path = os.pathsep.join([str(folder / "site"), str(ROOT)])

        def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", *map(str, arguments)]
            return run_without_privileges_in(folder, command, {"PYTHONPATH": path})

        yield run


def test_it_passes_the_suite_with_the_few_lines_it_has(run: Run) -> None:
    """Every test of it but those of what a store need not have."""
    ended = run("pytest", "-q", "-rs", "-p", "no:cacheprovider", "--basetemp=tests", "source/test_wanstore_tar.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "passed" in ended.stdout
    assert all("need not" in line for line in ended.stdout.splitlines() if line.startswith("SKIPPED"))


def test_the_command_stores_and_lists_by_its_scheme(run: Run, tmp_path: Path) -> None:
    """What is copied there is listed, by a URL whose scheme nothing but the package's entry point knows."""
    (tmp_path / "tiny").mkdir()
    sealed = seal_as_is(tmp_path / "tiny")
    copied = run("wanstore", "copy", "tiny", "--from", tmp_path, "--to", "tar://archives")
    assert copied.returncode == 0, copied.stderr
    listed = run("wanstore", "list", "--store", "tar://archives", "--json")
    assert [one["recipe"] for one in json.loads(listed.stdout)["pipelines"]] == [sealed.recipe]
