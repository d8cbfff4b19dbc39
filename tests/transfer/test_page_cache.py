"""What the kernel holds of a file is found out, and more of it asked for in time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snapshots.gvisor import Sandbox, why_not
from wanstore.building._weight_files import open_weights
from wanstore.transfer import _page_cache
from wanstore.transfer._page_cache import ReadAhead, cached_share, cached_spans, can_tell

ROOT = Path(__file__).parents[2]
SPANS = [(0, 1 << 20), (1 << 20, 2 << 20), (2 << 20, 3 << 20)]


def drop(path: Path) -> None:
    """Put the file out of page cache; skips where the file system keeps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if any(cached_spans(file.fileno(), [(0, path.stat().st_size)])):
            pytest.skip("this file system keeps its files in memory")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(3 << 20))
    return path


def test_a_file_just_written_is_cached(file: Path) -> None:
    """Every span of it."""
    with file.open("rb") as opened:
        assert cached_spans(opened.fileno(), SPANS) == [True] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_was_read_again_is_cached_and_the_rest_is_not(file: Path) -> None:
    """Span by span."""
    drop(file)
    with file.open("rb", buffering=0) as opened:
        assert cached_spans(opened.fileno(), SPANS) == [False] * 3
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead of the kernel's own
        os.pread(opened.fileno(), 1 << 20, 1 << 20)
        assert cached_spans(opened.fileno(), SPANS) == [False, True, False]


@pytest.fixture
def gvisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its mincore says of every page that it is in memory."""
    can_tell.cache_clear()
    monkeypatch.setattr(_page_cache, "_in_memory", lambda libc, address: True)
    yield
    can_tell.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_linux_can_tell_what_is_cached() -> None:
    """A page that nobody has touched is not in memory."""
    can_tell.cache_clear()
    assert can_tell()


def test_gvisor_cannot() -> None:
    """What Modal's containers run in."""
    if reason := why_not():
        pytest.skip(reason)
    program = "import json; from wanstore.transfer._page_cache import can_tell; print('ANSWER', json.dumps(can_tell()))"
    with Sandbox([sys.executable, "-c", program], environment={"PYTHONPATH": str(ROOT)}) as sandbox:
        assert sandbox.hear("ANSWER") is False


@pytest.mark.usefixtures("gvisor")
def test_a_kernel_that_says_yes_to_everything_is_not_believed(file: Path, tiny_copy: Path) -> None:
    """All counts as cached, so that it is read through the cache; and all is read ahead."""
    assert not can_tell()
    with file.open("rb") as opened:
        assert cached_spans(opened.fileno(), SPANS) == [True] * 3 and cached_share([opened.fileno()]) == 1.0
    with open_weights(tiny_copy) as weights:
        files = [file for group in weights.values() for file in group]
        assert len(ReadAhead(files)._work) == len(files), "each is smaller than a block"


def test_an_empty_file_and_no_spans_are_no_fault(tmp_path: Path, file: Path) -> None:
    """Nothing is asked of the kernel then."""
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as empty, file.open("rb") as opened:
        assert cached_spans(empty.fileno(), [(0, 1)]) == [True]
        assert cached_spans(opened.fileno(), []) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_reading_ahead_fills_the_cache_and_leaves_no_thread(tiny_copy: Path) -> None:
    """All weight files are in it after a while."""
    for path in tiny_copy.rglob("*.safetensors"):
        drop(path)
    with open_weights(tiny_copy) as weights:
        with ReadAhead(file for group in weights.values() for file in group) as ahead:
            assert ahead._threads
            for thread in ahead._threads:
                thread.join(20)
        for file in (file for group in weights.values() for file in group):
            assert cached_spans(file.descriptor, [(0, file.tensors[-1].stop)]) == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wanstore")]
