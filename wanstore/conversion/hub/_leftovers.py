"""What earlier runs left where a file goes: used if it is a plain file, deleted otherwise, never followed."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path, PurePosixPath

from wanstore._files import remove_tree

_LOG = logging.getLogger("wanstore")


def make_folder_for(root: Path, path: str) -> None:
    """Make the folder that the file `path` below `root` goes to, of real folders from `root` on."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root
    for part in PurePosixPath(path).parent.parts:
        folder /= part
        if folder.is_symlink() or not folder.is_dir():
            drop(folder, "it is in the place of a folder")
            folder.mkdir()


def drop_unless_plain(path: Path, *, written: bool) -> None:
    """Delete what is at `path` unless it is a file that may be read and, if `written`, written for its own sake."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    access, most_links = (os.R_OK | os.W_OK, 1) if written else (os.R_OK, status.st_nlink)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > most_links:
        drop(path, "it is a link or no file")
    elif not os.access(path, access, effective_ids=True):
        drop(path, "it cannot be read" if not written else "it cannot be read and written")


def drop(path: Path, why: str) -> None:
    """Delete what is at `path`, with a warning if there is anything."""
    if not os.path.lexists(path):
        return
    _LOG.warning("%s is deleted and downloaded again: %s", path, why)
    remove_tree(path, ignore_errors=False)
