"""wanstore: Wan 2.1 weights from their publisher to a ready GPU pipeline.

The public names are imported when they are first used, so `from wanstore import load` costs milliseconds and
drags in neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanstore.api import benchmark, load, setup
    from wanstore.errors import WanstoreError
    from wanstore.interfaces import Benchmarker, Converter, Progress, Stage, VerifyReport, WeightStore
    from wanstore.loading import activate
    from wanstore.loading.memory import MemoryPlan
    from wanstore.manifest import Manifest
    from wanstore.stores import open_store

__version__ = "0.1.0"

_HOMES = {
    "Benchmarker": "interfaces",
    "Converter": "interfaces",
    "Manifest": "manifest",
    "MemoryPlan": "loading.memory",
    "Progress": "interfaces",
    "Stage": "interfaces",
    "VerifyReport": "interfaces",
    "WanstoreError": "errors",
    "WeightStore": "interfaces",
    "activate": "loading",
    "benchmark": "flows",
    "load": "flows",
    "open_store": "stores",
    "setup": "flows",
}

__all__ = [
    "Benchmarker",
    "Converter",
    "Manifest",
    "MemoryPlan",
    "Progress",
    "Stage",
    "VerifyReport",
    "WanstoreError",
    "WeightStore",
    "__version__",
    "activate",
    "benchmark",
    "load",
    "open_store",
    "setup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wanstore' has no attribute {name!r}")
    return getattr(import_module(f"wanstore.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
