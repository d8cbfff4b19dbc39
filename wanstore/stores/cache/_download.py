"""What comes down from a remote store into the cache, and the room that is made for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from wanstore._error_translation import plain_os_errors
from wanstore.errors import AlreadyExistsError, DiskFullError
from wanstore.interfaces import Progress
from wanstore.manifest import Manifest
from wanstore.stores._transfers import Blocks, move_files
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


def download(
    read: Callable[[str], Blocks], store_url: str, manifest: Manifest, cache: Path, progress: Progress
) -> Path:
    """The pipeline's folder in `cache`, downloaded as far as it is not there. It is in use from then on: see `_uses`.

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
            move_files(read, f"{store_url}/{name}", manifest, stage, partial(progress.advance, task))
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
