"""Which store, which pipeline and which presets a caller means."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wanstore.choices import PresetName
from wanstore.errors import NotFoundError, NotSupportedError
from wanstore.interfaces import WeightStore
from wanstore.stores import open_store
from wanstore.stores._names import STORE_VARIABLE, split_address

if TYPE_CHECKING:
    from wanstore.presets import Preset

_HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def as_store(store: WeightStore | str | Path | None) -> WeightStore:
    return store if isinstance(store, WeightStore) else open_store(store)


def place_of(address: str | Path, store: WeightStore | str | Path | None) -> tuple[WeightStore, str]:
    """The store and name of a pipeline: `address` is its name in `store`, or says both."""
    text = str(address)
    if store is None:
        store = _store_of_names(text)
    elif _HUB_REPO.fullmatch(text):
        raise _not_stored(text)
    if store is None:
        store, text = split_address(text)
    return as_store(store), text


def unsealed_folder(address: str | Path, store: WeightStore | str | Path | None) -> Path:
    """The folder that a name in a store on this machine, or an address alone, stands for."""
    from wanstore.stores.local import LocalStore

    if store is None:
        store = _store_of_names(str(address))
    root = as_store(address if store is None else store)
    if not isinstance(root, LocalStore):
        raise NotSupportedError("Only a folder on this machine can be loaded without a manifest", "Name a folder")
    return root.root if store is None else root.root / str(address)


def presets_of(wanted: Sequence[Preset | PresetName] | None, model: str = "") -> list[Preset]:
    """Those that are asked for; names stand for the model's presets."""
    from wanstore.presets import PRESETS, Preset, load_presets, preset_named

    if isinstance(wanted, str | Preset):  # letter by letter it would be a sequence of names
        raise NotSupportedError(
            "presets is one preset, not a list of them", f"Give a list, such as ['{next(iter(PRESETS))}']"
        )
    presets = load_presets(None, model)
    chosen = presets.values() if wanted is None else wanted
    return [preset_named(preset, presets) if isinstance(preset, str) else preset for preset in chosen]


def _store_of_names(address: str) -> str | None:
    """The store that `WANSTORE_STORE` names if `address` is a name alone; None if the address says where to look.

    Raises `NotFoundError` for a name that no store is there for, and for what looks like a repo of the Hub.
    """
    if "/" not in address:
        store = os.environ.get(STORE_VARIABLE)
        if not (store or os.path.exists(address)):  # noqa: PTH110 - Path's own raises where a name is too long
            raise NotFoundError(
                f"There is no {address!r} in the current folder", f"Name its store, or set {STORE_VARIABLE}"
            )
        return store or None
    if _HUB_REPO.fullmatch(address) and not Path(address).parent.exists():
        raise _not_stored(address)
    return None


def _not_stored(repo: str) -> NotFoundError:
    return NotFoundError(
        f"There is no pipeline {repo} here", f"If it is a Hub repo, store it first: wanstore setup {repo} --store STORE"
    )
