"""A sealed pipeline from one store to another: the same bytes, the same manifest."""

from __future__ import annotations

import hashlib
from functools import partial
from io import BufferedReader
from pathlib import Path

from wanstore._error_translation import unreadable
from wanstore._files import bytes_below, free_bytes, hash_file, open_regular
from wanstore.errors import ChangedError, DamagedError, DiskFullError, NotFoundError, NotSupportedError
from wanstore.interfaces import Progress, Stage, WeightStore
from wanstore.manifest import FileEntry, Manifest
from wanstore.stores._transfers import Advance, all_at_once

_BLOCK_BYTES = 4 << 20


def copy_pipeline(
    manifest: Manifest, source: WeightStore, target: WeightStore, *, replace: bool, progress: Progress
) -> None:
    """Copy the pipeline of `manifest`, the source's; see `wanstore.copy`."""
    if source.url == target.url:
        raise NotSupportedError(f"{source.url} is both the source and the target", "Name two stores")
    name = manifest.name
    if _holds(target, manifest) and (not replace or target.verify(name, progress=progress).ok):
        progress.message(f"{name} is already there, with the same digest: nothing to do")
        return
    with target.stage(name, replace=replace, resume=f"copy {manifest.digest}") as stage:
        _check_space(stage, manifest)
        folder = source.local_path(name)
        try:
            _copy_files(folder, stage, manifest, progress)
        except (DamagedError, NotFoundError) as error:
            stage.discard()
            if source.manifest(name).digest != manifest.digest:
                raise ChangedError(f"{name} was replaced while it was copied", "Copy it again") from error
            raise
        stage.seal(manifest)


def _holds(target: WeightStore, manifest: Manifest) -> bool:
    try:
        return target.manifest(manifest.name).digest == manifest.digest
    except (NotFoundError, DamagedError):  # what is damaged can be replaced
        return False


def _check_space(stage: Stage, manifest: Manifest) -> None:
    free = free_bytes(stage.path)
    if free is not None and free < manifest.size_bytes - bytes_below(stage.path):
        raise DiskFullError(
            f"{manifest.name} has {manifest.size_bytes / 1e9:.2f} GB, and {stage.path} has room for {free / 1e9:.2f}",
            "Free some space and run the same command again",
        )


def _copy_files(folder: Path, stage: Stage, manifest: Manifest, progress: Progress) -> None:
    task = f"copy {manifest.name}"
    progress.start(task, manifest.size_bytes)
    all_at_once(partial(_copy_file, folder, stage), manifest.files, partial(progress.advance, task))
    progress.finish(task)


def _copy_file(folder: Path, stage: Stage, entry: FileEntry, advance: Advance) -> None:
    """Copy one file, hashed in passing; a whole one of an earlier run stays."""
    target = stage.path / entry.path
    if target.is_file() and target.stat().st_size == entry.size_bytes and hash_file(target) == entry.sha256:
        advance(entry.size_bytes)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = stage.scratch / hashlib.sha256(entry.path.encode()).hexdigest()
    found, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with _open(folder / entry.path) as file, draft.open("wb") as written:
        while count := file.readinto(block):
            found.update(block[:count])
            written.write(block[:count])
            advance(count)
    if found.hexdigest() != entry.sha256:
        raise DamagedError(
            f"{folder / entry.path} is not what its manifest says: its SHA-256 is another",
            "Look at it with: wanstore verify",
        )
    draft.replace(target)


def _open(path: Path) -> BufferedReader:
    try:
        return open_regular(path)
    except PermissionError as error:
        raise unreadable(path) from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error})", "Look at it with: wanstore verify") from error
