"""The local halves of a remote store: the folder that it stages in, and what came down from it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import attrs

from wanstore._files import hash_file
from wanstore.errors import AlreadyExistsError, DamagedError
from wanstore.interfaces import Progress, Stage
from wanstore.manifest import FileEntry, Manifest
from wanstore.stores._transfers import Advance, all_at_once
from wanstore.stores.local import LocalStore

CACHE_VARIABLE = "WANSTORE_CACHE"
"""The folder for downloads and stages, instead of the platform's cache folder."""
_REPAIR = "Run setup again with --replace"

Fetch = Callable[[str, IO[bytes], Advance], None]
"""Writes the stored file at a path into an open one, and says how much came; negative for what has to come again."""


def cache_folder() -> Path:
    """Where downloads and staging areas of remote stores are. All of it may be deleted while nothing runs."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    home = Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "wanstore"


@attrs.define
class RemoteStage:
    """A stage in a local folder; sealing uploads it."""

    _inner: Stage
    _publish: Callable[[Path, Manifest], None]
    path: Path = attrs.field(init=False)
    scratch: Path = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path, self.scratch = self._inner.path, self._inner.scratch

    def seal(self, manifest: Manifest) -> None:
        self._publish(self.path, manifest)

    def discard(self) -> None:
        self._inner.discard()


def download(fetch: Fetch, where: str, manifest: Manifest, cache: Path, progress: Progress) -> Path:
    """The pipeline's folder in `cache`, fetched as far as it is not there.

    A pipeline has a place of its own, by its manifest's digest, so one that is in use is never replaced. Files of an
    interrupted download are kept. `where` names the pipeline in errors. Raises `DamagedError` when what comes is not
    what the manifest says.
    """
    name, local = manifest.name, LocalStore(cache / "pipelines" / manifest.digest)
    for there in local.list().pipelines:  # under the name that it had when it came
        if there.digest == manifest.digest:
            return local.local_path(there.name)
    try:
        with local.stage(name, resume=manifest.digest) as stage:
            task = f"download {name}"
            progress.start(task, manifest.size_bytes)

            def fetch_file(entry: FileEntry, advance: Advance) -> None:
                _fetch_file(fetch, where, entry, stage, advance)

            all_at_once(fetch_file, manifest.files, lambda count: progress.advance(task, count))
            progress.finish(task)
            stage.seal(manifest)
    except AlreadyExistsError:  # another run was quicker
        pass
    return local.local_path(name)


def _no_longer_than(entry: FileEntry, where: str, advance: Advance) -> Advance:
    """`advance` that refuses more bytes than the file should have: they could fill a disk."""
    came = 0

    def told(amount: int) -> None:
        nonlocal came
        came += amount
        if came > entry.size_bytes:
            raise DamagedError(f"{entry.path} in {where} is longer than its manifest says", _REPAIR)
        advance(amount)

    return told


def _fetch_file(fetch: Fetch, where: str, entry: FileEntry, stage: Stage, advance: Advance) -> None:
    target = stage.path / entry.path
    if target.is_file() and hash_file(target) == entry.sha256:
        advance(entry.size_bytes)
        return
    draft = stage.scratch / hashlib.sha256(entry.path.encode()).hexdigest()
    try:
        with draft.open("wb") as file:
            fetch(entry.path, file, _no_longer_than(entry, where, advance))
    except FileNotFoundError:
        raise DamagedError(f"{entry.path} is missing in {where}", _REPAIR) from None
    if hash_file(draft) != entry.sha256:
        draft.unlink()
        raise DamagedError(f"{entry.path} in {where} is not what its manifest says", _REPAIR)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(target)
