"""Where pipeline folders live. `open_store` finds the backend for a URL, built-in or installed."""

from __future__ import annotations

import os
from pathlib import Path

from wanstore._installed import make_backend
from wanstore.errors import NotSupportedError
from wanstore.interfaces import WeightStore
from wanstore.stores._names import STORE_VARIABLE

_BUILT_IN = {
    "file": "wanstore.stores.local:LocalStore",
    "modal": "wanstore.stores.modal:ModalVolumeStore",
    **dict.fromkeys(("s3", "gs", "az"), "wanstore.stores.object:ObjectStore"),
}


def open_store(url: str | Path | None = None) -> WeightStore:
    """The store at `url`: `file:///folder`, a plain path, or another scheme that an installed backend serves.

    Without `url` it is the one that the environment variable `WANSTORE_STORE` names. Nothing is created before
    something is stored. Raises `NotSupportedError` if no store is named, for a scheme that nobody serves, and for a
    backend that cannot be imported or made.
    """
    if url is None and not (url := os.environ.get(STORE_VARIABLE)):
        raise NotSupportedError("No store is named", f"Give its path or URL, or set {STORE_VARIABLE}")
    text = str(url)
    if not text.removeprefix("file://"):  # an unset variable would otherwise mean the current folder
        raise NotSupportedError(
            "The store's address is empty", f"Give a path or URL, or leave it out to use {STORE_VARIABLE}"
        )
    scheme, separator, _ = text.partition("://")
    name = scheme if separator else "file"
    return make_backend(WeightStore, "store", name, _BUILT_IN, lambda backend: backend(text))
