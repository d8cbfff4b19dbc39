"""Imports with the rest deferred; see the package's own page for what that means."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

from wanstore.lean_imports import _proxies
from wanstore.lean_imports._deferred_names import ATTENTION, IMPORTERS, MODULES, make_proxies
from wanstore.lean_imports._dynamo import dynamo_deferred
from wanstore.lean_imports._proxies import after_import, find_proxies, importing_proxies, replaced, resolve
from wanstore.lean_imports._shortcuts import PackageMap, scan_models_once

PLAIN_VARIABLE = "WANSTORE_PLAIN_IMPORTS"
_IMPORTING = threading.Lock()
_FROZEN_AT_START = 1000
"""Python 3.12 and newer freeze some hundred objects of their own; a program that does it freezes many more."""


def import_lean(modules: Sequence[str]) -> None:
    """Import torch and then `modules`, in that order, deferring what they rarely use.

    Raises what importing raises. A GPU that was not in use stays unused: `allow_gpu` lets the libraries look for it.
    """
    # If another thread is importing, import locks keep the two apart.
    if not _plain() and _IMPORTING.acquire(blocking=False):
        try:
            if not _import_deferring(modules):
                _resolve_all()
        finally:
            _IMPORTING.release()
    for name in ("torch", *modules):  # what is imported stays so; what failed fails again, unless we caused it
        import_module(name)


def _import_deferring(modules: Sequence[str]) -> bool:
    """Whether all imports succeeded."""
    try:
        shortcut = partial(PackageMap, _IMPORTING.locked)
        with collection_paused(), replaced(importlib.metadata, packages_distributions=shortcut):
            import_module("torch")
            after_import("transformers.utils.import_utils", scan_models_once)
            with deferred_imports(), _gpu_hidden():
                for name in modules:
                    import_module(name)
    except Exception:  # noqa: BLE001  the plain import that follows says what it was
        return False
    return True


def _resolve_all() -> None:
    """Leave no proxy behind that may have caused the failure, as far as the real things can be imported."""
    for package in {name.partition(".")[0] for name in (*MODULES, *make_proxies())}:
        with suppress(Exception):
            resolve(IMPORTERS, package)


@contextmanager
def deferred_imports() -> Iterator[None]:
    """While the block runs, what libraries import and rarely use is replaced by proxies."""
    if _plain():
        yield
        return
    names = make_proxies()
    with dynamo_deferred(names), importing_proxies(IMPORTERS, MODULES, names):
        yield


def resolve_imported() -> None:
    """Replace each proxy in a library's namespace whose real thing has been imported since it was bound."""
    _proxies.resolve_imported(IMPORTERS)


@contextmanager
def collection_paused() -> Iterator[None]:
    """While the block runs there is no cyclic garbage collection: a load makes objects by the million, to stay."""
    if _plain() or not gc.isenabled():
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


def allow_gpu() -> None:
    """Let diffusers look for the GPU, and import attention packages, once a GPU may be used.

    A package that cannot be imported counts as not installed from then on, and diffusers' log has its warning.
    """
    for package, flag in ATTENTION.items():
        places = find_proxies(IMPORTERS, package)
        try:
            resolve(IMPORTERS, package)
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
def _gpu_hidden() -> Iterator[None]:
    """While the block runs no GPU is found, unless one is in use already.

    CUDA's answer holds for the life of a process: one that goes into a memory snapshot must not have asked where there
    is no GPU.
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


def _plain() -> bool:
    return os.environ.get(PLAIN_VARIABLE, "") not in ("", "0")
