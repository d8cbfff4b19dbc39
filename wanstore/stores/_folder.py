"""A pipeline folder on a file system: what is in it, whether it is what its manifest says."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wanstore._error_translation import reason_of, unreadable
from wanstore._files import HASHED_AT_ONCE, files_below, hash_file
from wanstore.errors import DamagedError, InvalidNameError, NotFoundError, NotSupportedError
from wanstore.interfaces import Listing, Progress, Quiet, Unreadable, VerifyReport, WeightStore
from wanstore.manifest import CONVERSION_NAME, MANIFEST_NAME, FileEntry, Manifest, parse_tensor_records


def has_manifest(folder: Path) -> bool:
    """Whether `folder` and the manifest in it are what they should be, and no links. Raises `AccessError`."""
    try:
        return not folder.is_symlink() and stat.S_ISREG((folder / MANIFEST_NAME).lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise unreadable(folder) from error


def check_against(folder: Path, manifest: Manifest, elsewhere: Mapping[str, int] | None = None) -> None:
    """Raise `DamagedError` unless `folder` holds just the files of `manifest`, in their sizes.

    Files that are `elsewhere` already need not be in it.
    """
    found = dict(elsewhere or {}) | {
        path: status.st_size for path, status in files_below(folder).items() if path != MANIFEST_NAME
    }
    listed = {entry.path: entry.size_bytes for entry in manifest.files}
    wrong = sorted(path for path in found.keys() | listed.keys() if found.get(path) != listed.get(path))
    if wrong:
        raise DamagedError(f"{folder} does not hold what its manifest lists: {', '.join(wrong[:8])}")


def verify_folder(folder: Path, manifest: Manifest, progress: Progress | None = None) -> VerifyReport:
    """Hash every file of a sealed `folder` again, and name each that is damaged, missing or extra."""
    progress = progress or Quiet()
    # A link could be pointed elsewhere after the check: in a sealed folder it is damage.
    sizes = {path: s.st_size if stat.S_ISREG(s.st_mode) else -1 for path, s in files_below(folder).items()}

    def sha256(path: str, advance: Callable[[int], None]) -> str | None:
        try:
            return hash_file(folder / path, advance)
        except PermissionError as error:
            raise unreadable(folder / path) from error
        except OSError:
            return None

    return verify_files(manifest, sizes, sha256, progress, at_once=HASHED_AT_ONCE)


def verify_files(
    manifest: Manifest,
    sizes: Mapping[str, int],
    sha256: Callable[[str, Callable[[int], None]], str | None],
    progress: Progress,
    *,
    at_once: int,
) -> VerifyReport:
    """Compare what a store holds with a manifest, hashing `at_once` files at a time.

    `sizes` gives every file that is there, -1 for what is no regular one; `sha256(path, advance)` hashes one,
    None if it cannot be read.
    """
    began = time.perf_counter()
    task = f"verify {manifest.name}"
    progress.start(task, manifest.size_bytes)

    def damaged(entry: FileEntry) -> bool:
        if sizes[entry.path] != entry.size_bytes:
            return True
        return sha256(entry.path, lambda count: progress.advance(task, count)) != entry.sha256

    present = sorted((entry for entry in manifest.files if entry.path in sizes), key=lambda entry: -entry.size_bytes)
    with ThreadPoolExecutor(at_once) as pool:
        verdicts = list(pool.map(damaged, present))
    progress.finish(task)
    listed = {entry.path for entry in manifest.files} | {MANIFEST_NAME}
    return VerifyReport(
        name=manifest.name,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        seconds=time.perf_counter() - began,
        damaged=tuple(sorted(e.path for e, bad in zip(present, verdicts, strict=True) if bad)),
        missing=tuple(sorted(listed - sizes.keys())),
        extra=tuple(sorted(sizes.keys() - listed)),
    )


def list_named(names: Iterable[str], manifest: Callable[[str], Manifest], is_taken: Callable[[str], object]) -> Listing:
    """What a remote store holds under `names`; `is_taken` says of a name that none may have whether it is one."""
    pipelines, unreadable = [], []
    for name in names:
        try:
            pipelines.append(manifest(name))
        except NotFoundError:  # nothing is sealed there
            continue
        except (InvalidNameError, DamagedError, NotSupportedError) as error:
            if not isinstance(error, InvalidNameError) or is_taken(name):
                unreadable.append(Unreadable(name, reason_of(error)))
    return Listing(tuple(pipelines), tuple(unreadable))


def tensor_records(store: WeightStore, manifest: Manifest) -> dict[str, Any]:
    """Each tensor's conversion record, as JSON by component; none if the converter kept none.

    Of a remote pipeline nothing else comes down. Raises `DamagedError`.
    """
    if all(entry.path != CONVERSION_NAME for entry in manifest.files):
        return {}
    where = f"{store.url}/{manifest.name}/{CONVERSION_NAME}"
    try:
        data = b"".join(map(bytes, store.reader(manifest.name)(CONVERSION_NAME)))
    except (FileNotFoundError, ValueError) as error:  # no regular file
        raise DamagedError(f"{where} is missing", "Run setup again with --replace") from error
    return parse_tensor_records(data, where)
