"""Where pipeline folders live. `open_store` finds the backend for a URL, built-in or installed."""

from __future__ import annotations

from pathlib import Path

from wanstore._installed import make_backend
from wanstore.interfaces import WeightStore

_BUILT_IN = {
    "file": "wanstore.stores.local:LocalStore",
    "modal": "wanstore.stores.modal:ModalVolumeStore",
    **dict.fromkeys(("s3", "gs", "az"), "wanstore.stores.object:ObjectStore"),
}


def open_store(url: str | Path) -> WeightStore:
    """The store at `url`: `file:///folder`, a plain path, or another scheme that an installed backend serves.

    Nothing is created before something is stored. Raises `NotSupportedError` for a scheme that nobody serves, and for
    a backend that cannot be imported or made.
    """
    text = str(url)
    scheme, separator, _ = text.partition("://")
    name = scheme if separator else "file"
    return make_backend(WeightStore, "store", name, _BUILT_IN, lambda backend: backend(text))
