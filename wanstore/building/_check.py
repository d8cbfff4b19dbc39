"""Before a load: is the folder what its manifest says, and does it hold a pipeline that this loader builds?"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from wanstore._error_translation import unreadable
from wanstore._files import HASHED_AT_ONCE, files_below, hash_file, identity
from wanstore._formats._json import read_json
from wanstore.components import check_index
from wanstore.errors import ChangedError, DamagedError, NotFoundError, WanstoreError
from wanstore.interfaces import Progress, Quiet
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest

_REPAIR = "Run setup again with --replace"
_READ_SUFFIXES = (".json", ".safetensors")
"""Files that a load may open. One that the manifest doesn't list could stand in for one that it does."""


def check_sealed(folder: Path, *, verify: bool, progress: Progress | None = None) -> Manifest:
    """The manifest of a sealed `folder`; raises `DamagedError` naming every file that is not as it says.

    Kinds and sizes are compared always, SHA-256 with `verify`. Raises `NotFoundError` without a manifest.
    """
    while True:
        began_with = identity(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise NotFoundError(
                f"{folder} is not sealed: it has no {MANIFEST_NAME}",
                "Run setup, or load it as it is with sealed=False",
            )
        faults = _wrong_files(folder, manifest)
        if verify and not faults:
            faults = _wrong_hashes(folder, manifest, progress or Quiet())
        if not faults:
            return manifest
        if identity(folder) == began_with:  # else it was replaced meanwhile: begin again with the new one
            listed = "; ".join(f"{path} {fault}" for path, fault in sorted(faults.items()))
            raise DamagedError(f"{folder} is not what its manifest says: {listed}", _REPAIR)


def check_same(folder: Path, manifest: Manifest) -> None:
    """Raise `ChangedError`, or `NotFoundError`, unless `folder` still holds the pipeline of `manifest`."""
    again = "Load the pipeline again, and make the snapshot again if there was one"
    if not folder.is_dir():
        raise NotFoundError(f"The folder {folder}, which this pipeline was prepared from, is gone", again)
    if check_sealed(folder, verify=False).digest != manifest.digest:
        raise ChangedError(f"{folder} holds another pipeline than this one was prepared from", again)


@contextmanager
def told_if_changed(folder: Path, manifest: Manifest | None) -> Iterator[None]:
    """Errors in the block that come of a change of `folder` say so, whatever they look like: see `check_same`.

    An unsealed folder has no manifest, and its errors are left as they are.
    """
    began_with = identity(folder)
    try:
        yield
    except (WanstoreError, OSError) as error:
        if manifest is not None:
            check_same(folder, manifest)
            if identity(folder) != began_with:  # deleted, and the same made again
                raise ChangedError(f"{folder} was replaced during the load", "Load the pipeline again") from error
        raise


def _wrong_files(folder: Path, manifest: Manifest) -> dict[str, str]:
    found = files_below(folder)
    faults = {}
    for entry in manifest.files:
        status = found.pop(entry.path, None)
        if status is None:
            faults[entry.path] = "is missing"
        elif not stat.S_ISREG(status.st_mode):  # a link could be pointed elsewhere after this check
            faults[entry.path] = "is not a regular file"
        elif status.st_size != entry.size_bytes:
            faults[entry.path] = f"has {status.st_size} bytes instead of {entry.size_bytes}"
    extra = [path for path in found if path.endswith(_READ_SUFFIXES) and path != MANIFEST_NAME]
    return faults | dict.fromkeys(extra, "does not belong to it")


def _wrong_hashes(folder: Path, manifest: Manifest, progress: Progress) -> dict[str, str]:
    def fault(entry: FileEntry) -> str:
        try:
            found = hash_file(folder / entry.path, lambda count: progress.advance(task, count))
        except PermissionError as error:
            raise unreadable(folder / entry.path) from error
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return "" if found == entry.sha256 else "has another SHA-256"

    task = f"verify {manifest.name}"
    progress.start(task, manifest.size_bytes)
    files = sorted(manifest.files, key=lambda entry: -entry.size_bytes)  # none is left alone at the end
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        faults = dict(zip((entry.path for entry in files), pool.map(fault, files), strict=True))
    progress.finish(task)
    return {path: fault for path, fault in faults.items() if fault}


def check_pipeline(folder: Path) -> None:
    """Raise `NotSupportedError` unless `folder` holds a Wan 2.1 text-to-video pipeline.

    Raises `NotFoundError` when it holds no pipeline at all.
    """
    if not (folder / "model_index.json").is_file():
        raise NotFoundError(f"{folder} is not a pipeline folder: it has no model_index.json", "Check the path")
    check_index(read_json(folder / "model_index.json"), str(folder / "model_index.json"))
