"""The libraries that a load needs, imported in half the time, and without a look at the GPU.

What `import` costs is mostly what libraries import at their top and a load never uses: PyTorch's compiler,
scikit-learn, scipy, peft. Those come when they are first used instead, and then they are the real ones. Python's
cyclic garbage collector pauses, and questions that libraries ask several times are answered once.

Each of these measures looks at what it finds, and does nothing where that is not what it expects. When an
import fails all the same, it is done again without any of them.
"""

from __future__ import annotations

import gc
import importlib.metadata
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from wanstore.loading.compiler import compiler_put_off
from wanstore.loading.rarely_used import ATTENTION, IMPORTERS, MODULES, make_stand_ins
from wanstore.loading.stand_ins import after_import, find_stand_ins, replaced, settle, standing_in

_LIBRARIES = (
    "torch",
    "wanstore.loading.assemble",
    "wanstore.loading.tokenizer",
    "diffusers.schedulers.scheduling_unipc_multistep",  # Wan 2.1's
)
_IMPORTING = threading.Lock()
_FROZEN_AT_START = 1000
"""Python 3.12 and newer freeze some hundred objects of their own; a program that does it freezes many more."""


def import_libraries() -> None:
    """Import torch, and of diffusers, transformers and accelerate what a load needs; raises what importing raises.

    A GPU that was not in use stays so: `settle_gpu` tells the libraries of it.
    """
    if _IMPORTING.acquire(blocking=False):  # else another thread is at it: import locks keep the two apart
        try:
            if not _import_quickly():
                _settle_all()
        finally:
            _IMPORTING.release()
    for name in _LIBRARIES:  # what is there is there; what failed fails again, unless it was our doing
        import_module(name)


def _import_quickly() -> bool:
    """Whether it went well."""
    try:
        with collection_paused(), replaced(importlib.metadata, packages_distributions=_PackageMap):
            import_module("torch")
            after_import("transformers.utils.import_utils", _scan_models_quickly)
            with put_off(), _gpu_not_asked():
                for name in _LIBRARIES:
                    import_module(name)
    except Exception:  # noqa: BLE001  the plain import that follows says what it was
        return False
    return True


def _settle_all() -> None:
    """Leave no stand-in behind that may have been in the way, as far as the real things are to be had."""
    for package in {name.partition(".")[0] for name in (*MODULES, *make_stand_ins())}:
        with suppress(Exception):
            settle(IMPORTERS, package)


@contextmanager
def put_off() -> Iterator[None]:
    """While the block runs, what libraries import and rarely use gets stand-ins instead."""
    names = make_stand_ins()
    with compiler_put_off(names), standing_in(IMPORTERS, MODULES, names):
        yield


@contextmanager
def collection_paused() -> Iterator[None]:
    """While the block runs there is no cyclic garbage collection: a load makes objects by the million, to stay."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() < _FROZEN_AT_START:  # else thawing would undo somebody's freezing
            gc.freeze()
            gc.unfreeze()  # all counts as old now, so the next collection does not go through it
        gc.enable()


def settle_gpu() -> None:
    """Let diffusers learn, once a GPU may be used, what it would have learnt from it when it was imported.

    Attention packages are imported. One that can't be counts as not installed from then on, and diffusers'
    log has its warning.
    """
    for package, flag in ATTENTION.items():
        places = find_stand_ins(IMPORTERS, package)
        try:
            settle(IMPORTERS, package)
        except (ImportError, OSError, RuntimeError) as error:  # those that diffusers expects
            for namespace, bound, _ in places:
                namespace[bound] = None
            dispatch = import_module("diffusers.models.attention_dispatch")
            setattr(dispatch, flag, False)
            dispatch.logger.warning(f"{package} failed to import: {error}. Falling back to native attention.")
    utils: Any = sys.modules.get("diffusers.utils.torch_utils")
    if hasattr(utils, "torch_device"):
        utils.torch_device = utils.get_device()


@contextmanager
def _gpu_not_asked() -> Iterator[None]:
    """While the block runs there is no GPU for who looks, unless it is in use already.

    CUDA answers a process for good: one that goes into a memory snapshot must not have asked where there is none.
    """
    import torch

    if torch.cuda.is_initialized():
        yield
        return
    with replaced(torch.accelerator, is_available=lambda: False):
        yield
    backend: Any = getattr(sys.modules.get("diffusers.utils.torch_utils"), "TorchDeviceBackend", None)
    with suppress(AttributeError):
        backend._detect_device_type.cache_clear()  # it remembers the answer


class _PackageMap(Mapping[str, list[str]]):
    """`importlib.metadata.packages_distributions()`, which reads every package's list of files, when it is needed.

    transformers and diffusers ask for it when they are imported, and then only for packages that have a
    distribution of their own name.
    """

    _compute = staticmethod(importlib.metadata.packages_distributions)

    def __init__(self) -> None:
        self._whole: Mapping[str, list[str]] | None = None

    def __getitem__(self, package: str) -> list[str]:
        if self._whole is None and _IMPORTING.locked():
            with suppress(importlib.metadata.PackageNotFoundError):
                return [importlib.metadata.distribution(package).metadata["Name"]]
        return self._all()[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Mapping[str, list[str]]:
        if self._whole is None:
            self._whole = self._compute()
        return self._whole


def _scan_models_quickly(utils: Any) -> None:
    """Let transformers look for the names that its models' files export once, not twice, and at their ends only."""
    scan, find_names = getattr(utils, "create_import_structure_from_path", None), getattr(utils, "fetch__all__", None)
    if not scan or not find_names or not hasattr(scan, "cache_info"):
        return

    def scan_folder(path: str | Path) -> Any:  # which a file in it stands for as well
        return scan(str(Path(path).parent if Path(path).is_file() else path))

    utils.create_import_structure_from_path = scan_folder
    utils.fetch__all__ = lambda text: find_names(text[text.rfind("\n__all__") + 1 :])  # the last one in a file counts
