"""What is in the cache, and how it is cleared."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import attrs
from filelock import FileLock, Timeout

from wanstore._error_translation import plain_os_errors
from wanstore._files import bytes_below, files_below, remove_tree
from wanstore.errors import NotFoundError
from wanstore.stores._folder import has_manifest
from wanstore.stores.cache._uses import (
    cache_folder,
    cache_locked,
    empty_trash,
    is_locked,
    is_used,
    last_use,
    read_note,
    take_out,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")


@attrs.frozen
class CachedPipeline:
    """A pipeline in the cache.

    Attributes:
        name: its name.
        store: the URL of the store that it comes from; None if it is not known: an older version has downloaded it, or
            it is on its way up.
        state: `whole`; `partial`, a download that is under way or was interrupted; `staged`, on its way up to a store.
        size_bytes: what it takes of the disk; of a download that is under way, what its files will take.
        last_used: when it was last asked for, or written.
        in_use: whether a running process uses or writes it.
        folder: all of it.
    """

    name: str
    store: str | None
    state: Literal["whole", "partial", "staged"]
    size_bytes: int
    last_used: datetime.datetime
    in_use: bool
    folder: Path


@attrs.frozen
class Cleared:
    """What `clear` has deleted, and what it has left since it is in use."""

    deleted: tuple[CachedPipeline, ...]
    in_use: tuple[CachedPipeline, ...]

    @property
    def freed_bytes(self) -> int:
        """The space that it took."""
        return sum(one.size_bytes for one in self.deleted)


def cached() -> tuple[CachedPipeline, ...]:
    """What is in the cache, sorted by name. Nothing is created."""
    root = cache_folder()
    if not root.is_dir():
        return ()
    with cache_locked(root):
        return look(root)


def clear(names: Iterable[str] = ()) -> Cleared:
    """Delete pipelines of these names from the cache; without names all of them, and what dead processes left behind.

    What a running process uses, downloads or stages stays. Stores keep what they hold: the next load downloads again.

    Raises:
        NotFoundError: a name is not in the cache. Nothing was deleted.
        AccessError: the cache may not be written.
    """
    names, root = tuple(names), cache_folder()
    found = cached()
    if missing := [name for name in names if name not in {one.name for one in found}]:
        raise NotFoundError(f"{', '.join(missing)}: not in the cache {root}", "See what is: wanstore cache list")
    if not found:
        return Cleared((), ())
    deleted: list[CachedPipeline] = []
    in_use: list[CachedPipeline] = []
    with cache_locked(root), plain_os_errors(root):
        for one in look(root):
            if not names or one.name in names:
                gone = not one.in_use and (_drop_stage(one.folder) if one.state == "staged" else _take_out(one.folder))
                (deleted if gone else in_use).append(one)
    empty_trash(root)
    return Cleared(tuple(deleted), tuple(in_use))


def look(root: Path) -> tuple[CachedPipeline, ...]:
    """What is in a locked cache."""
    downloads = [one for one in root.glob("*/*/pipelines/*") if _DIGEST.fullmatch(one.name) and one.is_dir()]
    stages = [stage for base in root.glob("*/*/staging") for stage in _stages_below(base)]
    found = [*map(_download, downloads), *map(_stage, stages)]
    return tuple(sorted(found, key=lambda one: (one.name, one.folder)))


def _download(folder: Path) -> CachedPipeline:
    note, used = read_note(folder), is_used(folder)
    name = next((one.name for one in folder.iterdir() if one.is_dir() and has_manifest(one)), None)
    staged = folder / ".wanstore/stages"
    return CachedPipeline(
        name=name or note.name or next((one.name for one in staged.glob("*")), folder.name),
        store=note.store,
        state="whole" if name else "partial",
        # Files that are just being moved would be counted twice, or not at all.
        size_bytes=(used and note.size_bytes) or bytes_below(folder),
        last_used=_time(last_use(folder)),
        in_use=used,
        folder=folder,
    )


def _stage(folder: Path) -> CachedPipeline:
    written = max(status.st_mtime for status in (folder.stat(), *files_below(folder).values()))
    return CachedPipeline(
        name=folder.name,
        store=None,
        state="staged",
        size_bytes=bytes_below(folder),
        last_used=_time(written),
        in_use=is_locked(_lock_of(folder)),
        folder=folder,
    )


def _stages_below(base: Path) -> Iterator[Path]:
    """The stages of all local stores below a folder: that of a prefix is deeper."""
    for directory, names, _ in os.walk(base):
        if ".wanstore" in names:
            names.remove(".wanstore")
            yield from (one for one in Path(directory, ".wanstore/stages").glob("*") if one.is_dir())


def _take_out(folder: Path) -> bool:
    take_out(folder)
    return True


def _drop_stage(folder: Path) -> bool:
    """Delete a stage unless somebody has just taken it up: who does, does not ask the cache."""
    try:
        with FileLock(_lock_of(folder), timeout=0):
            remove_tree(folder)
    except Timeout:
        return False
    return True


def _lock_of(stage: Path) -> Path:
    return stage.parent.parent / "locks" / stage.name


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
