"""One file of the Hub on its way to the disk: resumable, hashed, by the best way that leads on."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from wanstore._files import sync
from wanstore.conversion.hub._http import Http, Limits, NoRangesError, stopped_error
from wanstore.conversion.hub._leftovers import drop_unless_plain
from wanstore.conversion.hub._part import Part, TreeFile, is_whole
from wanstore.conversion.hub._pieces import Pieces
from wanstore.conversion.hub._ways import WayError, Ways
from wanstore.errors import DamagedError
from wanstore.interfaces import Progress

_FETCHES = 3
_LOOK_SECONDS = 0.05


class Download:
    """One file on its way to `target`. From the beginning it stands in the line of files that want streams."""

    def __init__(
        self, file: TreeFile, url: str, target: Path, ways: Ways, http: Http, limits: Limits, progress: Progress
    ) -> None:
        self._file, self._url, self._target = file, url, target
        self._ways, self._http, self._limits, self._progress = ways, http, limits, progress
        self._part = Part(file, target)
        self._stopping = threading.Event()
        ways.line.append(self)

    def stop(self) -> None:
        """Make `run`, in another thread, end soon with an error; what has arrived stays."""
        self._stopping.set()

    def already_there(self) -> bool:
        """Whether an earlier run finished the file, judged by its content; a damaged file is deleted."""
        drop_unless_plain(self._target, written=False)
        if not self._target.exists():
            return False
        if is_whole(self._file, self._target):
            self._progress.advance(self._file.path, self._file.size)
            self._part.notes.unlink(missing_ok=True)
            return True
        self._progress.message(f"{self._file.path}: the copy there is damaged; fetching it again")
        self._target.unlink()
        return False

    def run(self) -> None:
        """Fetch the file. Raises `DamagedError` when the bytes are wrong each time."""
        part, wrong = self._part, 0
        while wrong < _FETCHES:
            with part:
                resumed = bool(part.have)
                right = self._fill(resumed)
            if right:
                sync(part.path)
                part.path.rename(self._target)
                sync(self._target.parent)
                part.notes.unlink(missing_ok=True)
                return
            wrong += not resumed  # or what an earlier run left may be to blame
            part.notes.unlink(missing_ok=True)
            part.path.unlink()
            self._progress.advance(self._file.path, -self._file.size)
            self._progress.message(f"{self._file.path}: the bytes are not the Hub's; fetching it again")
        raise DamagedError(
            f"{self._file.path} arrived damaged {_FETCHES} times: its hash is not the Hub's",
            "Try again, or from another network",
        )

    def leave_line(self) -> None:
        """Let the next file fetch its pieces."""
        with suppress(ValueError):  # it has left already
            self._ways.line.remove(self)

    def _wait_in_line(self) -> None:
        line = self._ways.line
        while self in line and line[0] is not self:
            if self._stopping.wait(_LOOK_SECONDS):
                raise stopped_error(self._file.path)

    def _fill(self, resumed: bool) -> bool:
        """Fetch what is missing; whether the whole then has the right hash."""
        path, part, progress = self._file.path, self._part, self._progress
        self._wait_in_line()
        progress.advance(path, sum(stop - start for start, stop in part.have))
        if resumed:
            progress.message(f"{path}: resuming an earlier run")
        way = self._ways.best(self._file, self._url, progress, self._stopping)
        while True:
            if self._file.sha256 and (news := self._ways.news(way)):
                progress.message(news)
            try:
                Pieces(path, part, way, self.leave_line, self._http, self._limits, progress).run(self._stopping)
            except NoRangesError:
                progress.message(f"{path}: the server sends whole files only")
                self._ways.no_ranges()
            except WayError as error:
                progress.message(str(error))
                self._ways.failed(way)
            else:
                if not part.right and not resumed:
                    self._ways.failed(way)
                return part.right
            way = self._ways.best(self._file, self._url, progress, self._stopping)
