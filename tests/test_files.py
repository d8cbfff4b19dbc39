"""Helpers for files, on file systems that know less than a local disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from wanstore._files import free_bytes, sync


def refuse(code: int) -> object:
    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_may_not_know_how_to_sync_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """That is no fault; of a file it is one."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse(code))
    sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)):
        sync(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is broken or full says so here."""
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync(tmp_path)


@pytest.mark.parametrize(
    ("size", "blocks", "free", "told"),
    [
        (4096, 1000, 10, 40960),
        (0, 1000, 10, None),
        (4096, 0, 0, None),
        (4096, 1000, 0, None),
        (4096, 10, 1000, None),
        (4096, 1 << 60, 1 << 59, None),
    ],
)
def test_free_space_is_told_only_where_the_figures_make_sense(
    monkeypatch: pytest.MonkeyPatch, size: int, blocks: int, free: int, told: int | None
) -> None:
    """Placeholders: no blocks, blocks of no size, more free than there is, more than there can be."""
    figures = SimpleNamespace(f_frsize=size, f_blocks=blocks, f_bavail=free)
    monkeypatch.setattr(os, "statvfs", lambda _: figures)
    assert free_bytes(Path("/")) == told


def test_the_disk_here_has_free_space(tmp_path: Path) -> None:
    """Or nothing could be tested."""
    assert (free_bytes(tmp_path) or 0) > 0 and free_bytes(tmp_path / "missing") is None
