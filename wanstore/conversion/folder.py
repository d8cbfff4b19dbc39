"""A source that is a folder on this machine."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from wanstore._error_translation import unreadable
from wanstore.errors import NotFoundError, SourceError
from wanstore.interfaces import Progress, Source
from wanstore.manifest import SourceRecord


class FolderSource(Source):
    """A pipeline folder on this machine. Links are followed, so a Hub cache's snapshot folder works.

    Raises `NotFoundError` when there is no such folder, `AccessError` for what may not be read, and `SourceError`.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NotFoundError(f"There is no folder {folder}", "Name a folder or a Hub repo like Wan-AI/NAME")
        self.folder = folder.resolve()
        paths = [self.folder, *sorted(self.folder.rglob("*"))]
        for path in paths:  # one that cannot be listed would look empty
            if path.is_dir() and not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
                raise unreadable(path)
        stats = {path.relative_to(self.folder).as_posix(): path.stat() for path in paths if path.is_file()}
        self.files = {path: stat.st_size for path, stat in stats.items()}
        state = json.dumps({path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}, sort_keys=True)
        self.record = SourceRecord("folder", self.folder.name, hashlib.sha256(state.encode()).hexdigest())

    def head(self, path: str, size: int) -> bytes:
        return self._read(path, 0, size)

    def tail(self, path: str, size: int) -> bytes:
        return self._read(path, max(0, self.files[path] - size), size)

    def _read(self, path: str, start: int, size: int) -> bytes:
        try:
            with (self.folder / path).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except PermissionError:
            raise unreadable(self.folder / path) from None
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror})", "Check the source folder") from error

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        self.head(path, 0)  # or whoever reads it would not know whose fault it is
        return self.folder / path
