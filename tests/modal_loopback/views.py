"""What a container sees of a Volume: files of its own, which `commit` and `reload` bring together with the Volume's."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from pathlib import Path

import attrs

from tests.modal_loopback.volumes import Volume


class OpenFilesError(Exception):
    """The Volume is in use in this container, so its view cannot be exchanged."""


@attrs.frozen
class _Entry:
    """How a file looked; for a folder all are zero."""

    size: int = 0
    modified_ns: int = 0


class View:
    """The Volume as one container sees it, below `folder`: a copy from when it was mounted or last reloaded.

    A commit carries over what changed in the view since, file by file: of two containers' changes to one file
    the later one stays, and nothing else is lost.
    """

    def __init__(self, volume: Volume, folder: Path, read_only: bool) -> None:
        self.volume = volume
        self.folder = folder
        self.read_only = read_only
        # A commit and the background commits come from several threads.
        self._lock = threading.Lock()
        with volume.lock:
            shutil.copytree(volume.folder, folder)
        self._base = _index(folder)

    def commit(self) -> None:
        """Carry the view's changes over to the Volume. A file that is being written is carried over as it is."""
        if self.read_only:
            return
        with self._lock:
            now = _index(self.folder)
            changed = [path for path, entry in now.items() if self._base.get(path) != entry]
            removed = [path for path in self._base if path not in now]
            if changed or removed:
                time.sleep(self.volume.link.seconds(sum(now[path].size for path in changed)))
                with self.volume.changing() as folder:
                    _copy(changed, now, self.folder, folder)
                    _remove(removed, folder)
            self._base = now

    def reload(self, process_id: int) -> None:
        """Show the Volume as it is now. What this container changed is committed first.

        Raises `OpenFilesError` while a process has a file open or mapped here, or its working folder.
        """
        if _in_use(self.folder, process_id):
            raise OpenFilesError("there are open files preventing the operation")
        self.commit()
        with self._lock, self.volume.lock:
            theirs, ours = _index(self.volume.folder), _index(self.folder)
            _copy([path for path, entry in theirs.items() if ours.get(path) != entry], theirs, self.volume.folder,
                  self.folder)  # fmt: skip
            _remove([path for path in ours if path not in theirs], self.folder)
            self._base = _index(self.folder)

    def used_files(self, process_id: int) -> list[str]:
        """Files of the view that the process has open or mapped."""
        return _in_use(self.folder, process_id)


def _index(folder: Path) -> dict[str, _Entry]:
    """Every file and folder below `folder`, parents before children."""
    found = {}
    for parent, folders, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        found.update({(inside / name).as_posix(): _Entry() for name in folders})
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                status = Path(parent, name).stat()
                found[(inside / name).as_posix()] = _Entry(status.st_size, status.st_mtime_ns)
    return found


def _copy(paths: list[str], entries: dict[str, _Entry], source: Path, target: Path) -> None:
    for path in paths:
        if entries[path] == _Entry():
            (target / path).mkdir(parents=True, exist_ok=True)
            continue
        draft = target.parent / f"draft-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile: the next commit sees it
            shutil.copy2(source / path, draft)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            draft.rename(target / path)


def _remove(paths: list[str], folder: Path) -> None:
    for path in sorted(paths, reverse=True):
        with contextlib.suppress(OSError):  # gone already, or another's new files are in the folder
            (folder / path).rmdir() if (folder / path).is_dir() else (folder / path).unlink()


def _in_use(folder: Path, process_id: int) -> list[str]:
    """What the process and its children hold below `folder`, by its inodes: the container has other names for them."""
    inodes = {path.stat().st_ino: path.name for path in [folder, *folder.rglob("*")]}
    held: set[int] = set()
    for process in [process_id, *_children(process_id)]:
        proc = Path("/proc", str(process))
        with contextlib.suppress(FileNotFoundError):
            held |= {_inode(link) for link in [proc / "cwd", *(proc / "fd").iterdir()]}
            held |= {int(line.split()[4]) for line in (proc / "maps").read_text().splitlines()}
    return sorted(inodes[inode] for inode in held & inodes.keys())


def _inode(link: Path) -> int:
    try:
        return link.stat().st_ino
    except FileNotFoundError:
        return 0


def _children(process_id: int) -> list[int]:
    found = []
    for listing in Path("/proc", str(process_id), "task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            found += [child, *_children(child)]
    return found
