"""For backend authors and tests: conformance suites, a tiny Wan 2.1, a Hub on 127.0.0.1.

Imported by name, so that a demo needs no pytest: `from wanstore.testing.stores import WeightStoreTests`, or
`from wanstore.testing import WeightStoreTests`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanstore.testing.converters import ConverterTests
    from wanstore.testing.stores import WeightStoreTests

__all__ = ["ConverterTests", "WeightStoreTests"]


def __getattr__(name: str) -> Any:
    if name == "WeightStoreTests":
        from wanstore.testing.stores import WeightStoreTests

        return WeightStoreTests
    if name == "ConverterTests":
        from wanstore.testing.converters import ConverterTests

        return ConverterTests
    raise AttributeError(f"module 'wanstore.testing' has no attribute {name!r}")
