"""A folder for tests of what may not be read: nothing is refused to root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user who is not root, as whom the test goes on."""
    folder = Path(tempfile.mkdtemp())  # tmp_path is root's alone
    was = os.geteuid()
    try:
        if was == 0:
            os.chown(folder, _NOBODY, -1)
            os.seteuid(_NOBODY)
        yield folder
    finally:
        if was == 0:
            os.seteuid(0)
        shutil.rmtree(folder)
