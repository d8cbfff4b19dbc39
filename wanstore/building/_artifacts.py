"""Compiled functions as a store keeps them beside a pipeline: in a sealed folder of their own.

    NAME.compiled-0123456789ab/1x20280.function     for one clip of 20,280 tokens
                               wanstore.json        seals them; its options say what they were made for

The digits stand for all that functions depend on: device, versions, dtype, attention backend, the transformer's
config. A new library or another GPU finds none, and is told why.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from wanstore._error_translation import first_line
from wanstore._files import read_small_file
from wanstore._formats._json import digest_of
from wanstore.errors import DamagedError, NotFoundError, WanstoreError
from wanstore.interfaces import WeightStore
from wanstore.manifest import FileEntry, Manifest, read_manifest

_LOG = logging.getLogger("wanstore")

Shape = tuple[int, int]
"""What tells one function's inputs from another's: clips at once, and the tokens of each. The rest is guarded."""

CONVERTER = "compile"
VERSION = 1
"""Raise it whenever functions of before must not be used any more."""
_FUNCTION_MAX_BYTES = 256 << 20
"""Wan 2.1's have 4 MB."""
_REMEDY = "Make them again with: wanstore compile"


def is_compiled(manifest: Manifest) -> bool:
    """Whether a sealed folder holds compiled functions, and no pipeline."""
    return manifest.conversion.converter == CONVERTER


def _prefix(pipeline: str) -> str:
    return f"{pipeline}.compiled-"


def folder_name(pipeline: str, made_for: Mapping[str, str]) -> str:
    """What a store calls the folder of a pipeline's functions."""
    return _prefix(pipeline) + digest_of({**made_for, "version": VERSION})[:12]


def spelled(shape: Shape) -> str:
    """A shape as reports and files have it: 1x20280."""
    return f"{shape[0]}x{shape[1]}"


def file_name(shape: Shape) -> str:
    """A function's file."""
    return f"{spelled(shape)}.function"


def shape_of(file: str) -> Shape | None:
    """The shape of the function in a file; None where it is another file."""
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})\.function", file, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def shapes_in(manifest: Manifest) -> tuple[Shape, ...]:
    """The shapes that a sealed folder has functions for, smallest first."""
    return tuple(sorted(filter(None, (shape_of(entry.path) for entry in manifest.files))))


def compiled_of(pipeline: str, stored: Iterable[Manifest]) -> list[Manifest]:
    """Those of the sealed folders that hold functions of that pipeline."""
    return [one for one in stored if is_compiled(one) and one.name.startswith(_prefix(pipeline))]


def functions_of(store: WeightStore, pipeline: str) -> list[Path]:
    """The folders of functions that a store keeps beside a pipeline, newest first, whatever they were made for.

    Clips can be made without: a store that cannot be looked through is a warning in the log.
    """
    folders = []
    try:
        found = compiled_of(pipeline, store.list().pipelines)
        for one in sorted(found, key=lambda one: one.created_at, reverse=True):
            with suppress(NotFoundError):  # deleted meanwhile
                folders.append(store.local_path(one.name))
    except (WanstoreError, OSError) as error:
        _LOG.warning("compiled functions of %s cannot be looked for: %s", pipeline, first_line(error))
    return folders


def read_functions(folders: Iterable[Path], made_for: Mapping[str, str]) -> dict[Shape, bytes]:
    """Functions made for just this, from the first of the sealed `folders` that has whole ones.

    One that is not what the manifest says is left out, with a warning in the log. Raises `NotFoundError`, which says
    for what else there are some, and `DamagedError` where none is whole.
    """
    others, damage = [], []
    for folder in folders:
        try:
            manifest = None if folder.is_symlink() else read_manifest(folder)
        except WanstoreError as error:
            damage.append(error.what)
            continue
        if manifest is None:
            continue
        if manifest.conversion.options != made_for or manifest.conversion.version != VERSION:
            others.append(difference(manifest.conversion.options, made_for))
            continue
        functions = {}
        for entry in manifest.files:
            if shape := shape_of(entry.path):
                try:
                    functions[shape] = _read(folder, entry)
                except DamagedError as error:
                    _LOG.warning("%s", error)
                    damage.append(error.what)
        if functions:
            return functions
    if damage:
        raise DamagedError("; ".join(damage), _REMEDY)
    if not others:
        raise NotFoundError("none are stored", "Make some with: wanstore compile")
    raise NotFoundError(f"those that are stored are for {'; or '.join(others)}", "Make some with: wanstore compile")


def _read(folder: Path, entry: FileEntry) -> bytes:
    try:
        data = read_small_file(folder / entry.path, _FUNCTION_MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / entry.path} cannot be read ({error})", _REMEDY) from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedError(f"{folder / entry.path} was altered: its hash does not match", _REMEDY)
    return data


def difference(stored: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """What functions were made for, as far as it is not what is wanted."""
    wrong = [f"{key} {value}, not {wanted.get(key)}" for key, value in stored.items() if value != wanted.get(key)]
    return ", ".join(wrong) or "another version of wanstore"
