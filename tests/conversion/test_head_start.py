"""A file that is on its way before it is asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from wanstore.conversion._head_start import HeadStart
from wanstore.conversion.folder import FolderSource
from wanstore.errors import UnreachableError
from wanstore.interfaces import Progress, Quiet
from wanstore.testing.converters import CountedSource

FIRST, OTHER = "vae/config.json", "model_index.json"


def test_who_asks_for_the_file_gets_the_one_that_was_begun(tiny_fp32: Path, tmp_path: Path) -> None:
    """Once: after it was released, it is fetched again. All else is the source's own."""
    source = CountedSource(tiny_fp32)
    with HeadStart(source, FIRST, tmp_path, Quiet()) as ahead:
        assert (ahead.record, ahead.files) == (source.record, source.files)
        assert ahead.head(FIRST, 5) == source.head(FIRST, 5)
        assert ahead.fetch(FIRST, tmp_path, Quiet()) == tiny_fp32 / FIRST and source.fetched == [FIRST]
        ahead.fetch(OTHER, tmp_path, Quiet())
        ahead.fetch(FIRST, tmp_path, Quiet())
    assert source.fetched == [FIRST, OTHER, FIRST]


def test_its_error_is_raised_where_the_file_is_needed(tiny_fp32: Path, tmp_path: Path) -> None:
    """Once, and not if nobody asks for it."""
    source = CountedSource(tiny_fp32, broken=FIRST)
    with HeadStart(source, FIRST, tmp_path, Quiet()) as ahead:
        ahead.fetch(OTHER, tmp_path, Quiet())
        with pytest.raises(UnreachableError, match=f"{FIRST} cannot be fetched"):
            ahead.fetch(FIRST, tmp_path, Quiet())
        source.broken = ""
        assert ahead.fetch(FIRST, tmp_path, Quiet()) == tiny_fp32 / FIRST
    with HeadStart(CountedSource(tiny_fp32, broken=FIRST), FIRST, tmp_path, Quiet()):
        pass


def test_nothing_goes_on_after_the_block(tiny_fp32: Path, tmp_path: Path) -> None:
    """Also where the fetch was not so far yet that the first `stop` could reach it."""

    class Endless(FolderSource):
        stops = 0
        ended = threading.Event()

        def fetch(self, path: str, into: Path, progress: Progress) -> Path:
            self.ended.wait()
            raise UnreachableError("stopped")

        def stop(self) -> None:
            self.stops += 1
            if self.stops == 2:
                self.ended.set()

    before = threading.active_count()
    source = Endless(tiny_fp32)
    with pytest.raises(KeyboardInterrupt), HeadStart(source, FIRST, tmp_path, Quiet()):
        raise KeyboardInterrupt
    assert source.stops == 2 and threading.active_count() == before
