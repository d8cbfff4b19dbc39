"""The conformance suites on wrong backends: what test_conformance runs by pytest, in a process without privileges.

`WANSTORE_WRONG` says which kind: stores, converters or benchmarkers. Wrong stores delete and write where they should
not, so this refuses to run as root.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from wanstore.interfaces import WeightStore

if os.geteuid() == 0:
    pytest.exit("wrong stores do not run as root", 1)


def store_suite(wrong: Any) -> type:
    from wanstore.testing import WeightStoreTests

    class Suite(WeightStoreTests):
        @pytest.fixture
        def store(self, tmp_path: Path) -> Any:
            return wrong((tmp_path / "store").as_uri())

        def opener(self, store: WeightStore) -> Callable[[], WeightStore]:
            return partial(wrong, store.url)

    return Suite


def converter_suite(wrong: Any) -> type:
    from wanstore.testing import ConverterTests

    class Suite(ConverterTests):
        @pytest.fixture
        def converter(self) -> Any:
            return wrong()

    return Suite


def benchmarker_suite(wrong: Any) -> type:
    from wanstore.testing import BenchmarkerTests

    class Suite(BenchmarkerTests):
        @pytest.fixture
        def benchmarker(self) -> Any:
            return wrong()

    return Suite


KIND = os.environ["WANSTORE_WRONG"]
SUITE_OF = {"stores": store_suite, "converters": converter_suite, "benchmarkers": benchmarker_suite}[KIND]
for one in import_module(f"tests.testing.wrong_{KIND}").WRONG:
    globals()[f"Test{one.__name__}"] = SUITE_OF(one)
