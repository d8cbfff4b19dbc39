"""The conformance suites on wrong backends: what test_conformance runs by pytest, in a process without privileges.

`WANSTORE_WRONG` says which kind: stores, converters or benchmarkers. Wrong stores delete and write where they should
not, so this refuses to run as root.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from wanstore.interfaces import WeightStore

if os.geteuid() == 0:
    pytest.exit("wrong stores do not run as root", 1)


def store_suite(wrong: type) -> type:
    from wanstore.testing import WeightStoreTests

    class Suite(WeightStoreTests):
        @pytest.fixture
        def store(self, tmp_path: Path) -> Any:
            return wrong((tmp_path / "store").as_uri())

        def opener(self, store: WeightStore) -> Callable[[], WeightStore]:
            return partial(wrong, store.url)

    return Suite


def suites(kind: str) -> dict[str, type]:
    """The suite of each wrong backend, by the name of its class."""
    from tests.testing import wrong_stores

    modules: dict[str, tuple[Any, Callable[[type], type]]] = {"stores": (wrong_stores, store_suite)}
    module, suite_of = modules[kind]
    return {f"Test{wrong.__name__}": suite_of(wrong) for wrong in module.WRONG}


globals().update(suites(os.environ["WANSTORE_WRONG"]))
