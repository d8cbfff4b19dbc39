"""Where pipeline folders live. `open_store` finds the backend for a URL, built-in or installed."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from wanstore.errors import NotSupportedError
from wanstore.interfaces import WeightStore

_GROUP = "wanstore.stores"
"""Entry-point group of backends: the name is the URL scheme, the object is called with the URL."""


def open_store(url: str | Path) -> WeightStore:
    """The store at `url`: `file:///folder`, a plain path, or another scheme that an installed backend serves.

    Nothing is created before something is stored. Raises `NotSupportedError` for a scheme that nobody serves.
    """
    text = str(url)
    scheme, separator, _ = text.partition("://")
    if not separator or scheme == "file":
        from wanstore.stores.local import LocalStore

        return LocalStore(text)
    if scheme == "modal":
        # By name, not by entry point: on Modal wanstore is often mere source files, which have none.
        from wanstore.stores.modal import ModalVolumeStore

        return ModalVolumeStore(text)
    for entry in entry_points(group=_GROUP, name=scheme):
        try:
            backend = entry.load()
        except ImportError as error:
            raise NotSupportedError(
                f"The backend for {scheme}:// ({entry.value}) cannot be imported: {error}", "Install what it needs"
            ) from error
        store: WeightStore = backend(text)
        return store
    known = ", ".join(f"{name}://" for name in sorted({entry.name for entry in entry_points(group=_GROUP)}))
    raise NotSupportedError(
        f"No store serves {scheme}:// addresses", f"Install a package that adds it, or use a plain path or {known}"
    )
