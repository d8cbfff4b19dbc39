"""Whether what a benchmark leaves behind can be written, asked before anything is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wanstore.errors import AccessError


def check_writable(folder: Path, *files: Path) -> None:
    """Make the folder where there is none. Raises `AccessError` unless it takes files, and `files` new contents."""
    place = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for place in files:
            if place.exists():
                place.open("ab").close()  # leaves it as it is
    except OSError as error:
        raise AccessError(f"{place} cannot be written ({error.strerror})", "Name another place") from error
