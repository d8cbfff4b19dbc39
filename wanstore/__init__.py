"""wanstore: Wan 2.1 weights from their publisher to a ready GPU pipeline.

The public names are imported when they are first used, so `from wanstore import load` costs milliseconds and
brings in neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Benchmarker",
    "Converter",
    "Manifest",
    "MemoryPlan",
    "Preset",
    "Progress",
    "SetupPlan",
    "Stage",
    "VerifyReport",
    "WanPipeline",
    "WanstoreError",
    "WeightStore",
    "__version__",
    "activate",
    "bench",
    "benchmark",
    "compile_blocks",
    "copy",
    "load",
    "open_store",
    "plan_setup",
    "report",
    "setup",
    "verify",
]

if TYPE_CHECKING:
    from wanstore.api._setup import SetupPlan
    from wanstore.api.measuring import bench, benchmark
    from wanstore.api.serving import activate, compile_blocks, load
    from wanstore.api.storing import copy, plan_setup, report, setup, verify
    from wanstore.errors import WanstoreError
    from wanstore.interfaces import Benchmarker, Converter, Progress, Stage, VerifyReport, WeightStore
    from wanstore.loading._pipeline import WanPipeline
    from wanstore.manifest import Manifest
    from wanstore.memory import MemoryPlan
    from wanstore.presets import Preset
    from wanstore.stores import open_store
else:  # a checker that saw this would accept any name
    _HOMES = {
        "wanstore.api._setup": ("SetupPlan",),
        "wanstore.api.measuring": ("bench", "benchmark"),
        "wanstore.api.serving": ("activate", "compile_blocks", "load"),
        "wanstore.api.storing": ("copy", "plan_setup", "report", "setup", "verify"),
        "wanstore.errors": ("WanstoreError",),
        "wanstore.interfaces": ("Benchmarker", "Converter", "Progress", "Stage", "VerifyReport", "WeightStore"),
        "wanstore.loading._pipeline": ("WanPipeline",),
        "wanstore.manifest": ("Manifest",),
        "wanstore.memory": ("MemoryPlan",),
        "wanstore.presets": ("Preset",),
        "wanstore.stores": ("open_store",),
    }

    def __getattr__(name):
        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(module), name)
        raise AttributeError(f"module 'wanstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
