"""A pipeline folder on a file system: what is in it, whether it is what its manifest says."""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wanstore.errors import DamagedError
from wanstore.files import files_below, hash_file
from wanstore.interfaces import Progress, Quiet, VerifyReport
from wanstore.manifest import MANIFEST_NAME, FileEntry, Manifest


def check_against(folder: Path, manifest: Manifest) -> None:
    """Raise `DamagedError` unless `folder` holds just the files of `manifest`, in their sizes."""
    found = {path: status.st_size for path, status in files_below(folder).items() if path != MANIFEST_NAME}
    listed = {entry.path: entry.size_bytes for entry in manifest.files}
    wrong = sorted(path for path in found.keys() | listed.keys() if found.get(path) != listed.get(path))
    if wrong:
        raise DamagedError(f"{folder} does not hold what its manifest lists: {', '.join(wrong[:8])}")


def verify_folder(folder: Path, manifest: Manifest, progress: Progress | None = None) -> VerifyReport:
    """Hash every file of a sealed `folder` again, and name each that is damaged, missing or extra."""
    progress = progress or Quiet()
    began = time.perf_counter()
    task = f"verify {manifest.name}"
    progress.start(task, manifest.size_bytes)
    found = files_below(folder)

    def damaged(entry: FileEntry) -> bool:
        status = found[entry.path]
        # A link could be pointed elsewhere after the check: in a sealed folder it is damage.
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size_bytes:
            return True
        try:
            return hash_file(folder / entry.path, progress, task) != entry.sha256
        except OSError:
            return True

    present = [entry for entry in manifest.files if entry.path in found]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        verdicts = list(pool.map(damaged, present))
    progress.finish(task)
    listed = {entry.path for entry in manifest.files} | {MANIFEST_NAME}
    return VerifyReport(
        name=manifest.name,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        seconds=time.perf_counter() - began,
        damaged=tuple(sorted(e.path for e, bad in zip(present, verdicts, strict=True) if bad)),
        missing=tuple(sorted(listed - found.keys())),
        extra=tuple(sorted(found.keys() - listed)),
    )
