"""The conformance suites: right backends pass them, and each wrong one fails the test that is about its fault."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.testing import wrong_benchmarkers, wrong_converters, wrong_stores
from tests.testing.quick_benchmarker import QuickBenchmarker
from tests.testing.zip_store import ZipStore, read_zip, write_zip
from tests.unprivileged import can_drop_privileges, run_without_privileges_in
from wanstore.interfaces import WeightStore
from wanstore.testing import BenchmarkerTests, WeightStoreTests

ROOT = Path(__file__).parents[2]
WRONG: dict[str, list[Any]] = {
    "stores": wrong_stores.WRONG,
    "converters": wrong_converters.WRONG,
    "benchmarkers": wrong_benchmarkers.WRONG,
}


class TestZipStore(WeightStoreTests):
    """A store without folders passes the suite: nothing in it dictates a layout."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> ZipStore:
        return ZipStore(f"zip://{tmp_path}/store")

    def opener(self, store: WeightStore) -> Callable[[], WeightStore]:
        return partial(ZipStore, store.url)

    def damage(self, store: WeightStore, name: str, path: str, data: bytes | None) -> None:
        assert isinstance(store, ZipStore)
        files = read_zip(store.blob(name)) | {path: data or b""}
        if data is None:
            del files[path]
        write_zip(store.blob(name), files)

    def stored_bytes(self, store: WeightStore, tmp_path: Path) -> int:
        assert isinstance(store, ZipStore)
        return super().stored_bytes(store, store.root / "objects")


class TestQuickBenchmarker(BenchmarkerTests):
    """One whose report is its own passes the suite."""

    @pytest.fixture
    def benchmarker(self) -> QuickBenchmarker:
        return QuickBenchmarker()


def run_without_privileges(tests: list[str], kind: str) -> tuple[dict[str, str], str]:
    """How each test of `suites_of_wrong_ones` ended, by its class, and what pytest printed.

    It runs as a user that may write nothing but a temporary folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-q",
            "-p", "no:cacheprovider", "--basetemp=tests", "--junitxml=outcomes.xml", *tests,
        ]  # fmt: skip
        if not can_drop_privileges():
            pytest.skip("setpriv is not installed, and wrong stores do not run as root")
        run = run_without_privileges_in(Path(folder), command, {"WANSTORE_WRONG": kind})
        assert Path(folder, "outcomes.xml").exists(), run.stdout + run.stderr
        cases = ElementTree.parse(Path(folder, "outcomes.xml")).iter("testcase")
        ends = {case.attrib["classname"].rpartition(".Test")[2]: " ".join(part.tag for part in case) for case in cases}
    return ends, run.stdout


@pytest.mark.parametrize("kind", WRONG)
def test_each_wrong_backend_fails_the_test_about_its_fault(kind: str) -> None:
    """It fails in that test, not in a fixture; and the right backends pass the same suite."""
    caught_by = {wrong.__name__: wrong.caught_by for wrong in WRONG[kind]}
    file = ROOT / "tests/testing/suites_of_wrong_ones.py"
    ends, output = run_without_privileges([f"{file}::Test{name}::{test}" for name, test in caught_by.items()], kind)
    assert ends == dict.fromkeys(caught_by, "failure"), output
