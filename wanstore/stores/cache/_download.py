"""The local halves of a remote store: the folder that it stages in, and what came down from it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO

import attrs

from wanstore._error_translation import plain_os_errors
from wanstore._files import hash_file
from wanstore.errors import AlreadyExistsError, DamagedError, DiskFullError
from wanstore.interfaces import Progress, Stage
from wanstore.manifest import FileEntry, Manifest
from wanstore.stores._transfers import Advance, all_at_once
from wanstore.stores.cache._contents import look
from wanstore.stores.cache._uses import (
    LIMIT_VARIABLE,
    Note,
    cache_locked,
    empty_trash,
    limit_bytes,
    release,
    take_out,
    use,
)
from wanstore.stores.local import LocalStore

_LOG = logging.getLogger("wanstore")

_REPAIR = "Run setup again with --replace"

Fetch = Callable[[str, IO[bytes], Advance], None]
"""Writes the stored file at a path into an open one, and says how much came; negative for what has to come again."""


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


def download(fetch: Fetch, store_url: str, manifest: Manifest, cache: Path, progress: Progress) -> Path:
    """The pipeline's folder in `cache`, fetched as far as it is not there. It is in use from then on: see `_uses`.

    A pipeline has a place of its own, by its manifest's digest, so one that is in use is never replaced. Files of an
    interrupted download are kept. Raises `DamagedError` when what comes is not what the manifest says, and
    `DiskFullError` when the cache may not hold that much.
    """
    name, root = manifest.name, cache.parents[1]
    local = LocalStore(cache / "pipelines" / manifest.digest)
    with plain_os_errors(root), cache_locked(root):
        there = _sealed_in(local, manifest)
        if there is None:
            _make_room(root, local.root, manifest)
        use(local.root, Note(store_url, there or name, manifest.size_bytes))
    if there:
        return local.local_path(there)
    empty_trash(root)
    try:
        with local.stage(name, resume=manifest.digest) as stage:
            task = f"download {name}"
            progress.start(task, manifest.size_bytes)

            def fetch_file(entry: FileEntry, advance: Advance) -> None:
                _fetch_file(fetch, f"{store_url}/{name}", entry, stage, advance)

            all_at_once(fetch_file, manifest.files, lambda count: progress.advance(task, count))
            progress.finish(task)
            stage.seal(manifest)
    except AlreadyExistsError:  # another run was quicker
        pass
    except BaseException:
        release(local.root / name)
        raise
    return local.local_path(name)


def _sealed_in(local: LocalStore, manifest: Manifest) -> str | None:
    """The name that the pipeline had when it came; None if it is not there."""
    return next((there.name for there in local.list().pipelines if there.digest == manifest.digest), None)


def _make_room(root: Path, folder: Path, manifest: Manifest) -> None:
    """Take pipelines that nobody uses out of a locked cache, those first that were not used for longest."""
    limit = limit_bytes()
    if limit is None:
        return
    needed = f"{manifest.name} has {_gib(manifest.size_bytes)}, and the cache {root} may hold {_gib(limit)}"
    if manifest.size_bytes > limit:
        raise DiskFullError(f"{needed} ({LIMIT_VARIABLE})", f"Raise {LIMIT_VARIABLE}")
    others = [one for one in look(root) if one.state != "staged" and one.folder != folder]
    excess = manifest.size_bytes + sum(one.size_bytes for one in others) - limit
    leaving = []
    for one in sorted(others, key=lambda one: one.last_used):
        if excess > 0 and not one.in_use:
            leaving.append(one)
            excess -= one.size_bytes
    if excess > 0:
        used = sum(one.size_bytes for one in others if one.in_use)
        raise DiskFullError(
            f"{needed} ({LIMIT_VARIABLE}), of which {_gib(used)} are in use",
            f"See what is in use with: wanstore cache list. Wait for it, or raise {LIMIT_VARIABLE}",
        )
    for one in leaving:
        take_out(one.folder)
        _LOG.info("%s left the cache to make room for %s", one.name, manifest.name)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.2f} GiB"


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
