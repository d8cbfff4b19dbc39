"""A sealed pipeline from one store to another: the same bytes, the same manifest."""

from __future__ import annotations

from functools import partial

from wanstore._files import bytes_below, free_bytes
from wanstore.errors import ChangedError, DamagedError, DiskFullError, NotFoundError, NotSupportedError
from wanstore.interfaces import FileStage, Progress, Stage, WeightStore
from wanstore.manifest import Manifest
from wanstore.stores._transfers import move_files


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
        if not isinstance(stage, FileStage):
            _check_space(stage, manifest)
        task = f"copy {name}"
        progress.start(task, manifest.size_bytes)
        try:
            move_files(source.reader(name), f"{source.url}/{name}", manifest, stage, partial(progress.advance, task))
        except (DamagedError, NotFoundError) as error:
            stage.discard()
            if source.manifest(name).digest != manifest.digest:
                raise ChangedError(f"{name} was replaced while it was copied", "Copy it again") from error
            raise
        progress.finish(task)
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
