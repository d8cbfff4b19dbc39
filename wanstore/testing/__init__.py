"""For backend authors and tests: conformance suites, a tiny Wan 2.1, a Hub on 127.0.0.1.

Imported by name, so that a demo needs no pytest: `from wanstore.testing.stores import WeightStoreTests`, or
`from wanstore.testing import WeightStoreTests`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanstore.testing.benchmarkers import BenchmarkerTests
    from wanstore.testing.converters import ConverterTests
    from wanstore.testing.stores import WeightStoreTests

__all__ = ["BenchmarkerTests", "ConverterTests", "WeightStoreTests"]

_SUITES = {
    "BenchmarkerTests": "wanstore.testing.benchmarkers",
    "ConverterTests": "wanstore.testing.converters",
    "WeightStoreTests": "wanstore.testing.stores",
}

if "pytest" in sys.modules:  # a failing test shows what it compared, as those of a test folder do
    import pytest

    pytest.register_assert_rewrite(*_SUITES.values())


def __getattr__(name: str) -> Any:
    if name in _SUITES:
        return getattr(import_module(_SUITES[name]), name)
    raise AttributeError(f"module 'wanstore.testing' has no attribute {name!r}")
