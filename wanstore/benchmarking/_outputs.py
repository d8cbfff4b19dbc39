"""Whether what a benchmark leaves behind can be written, asked before anything is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wanstore.errors import AccessError, NotSupportedError


def check_page(path: Path) -> None:
    """Raise unless a page can be written at `path`, and its JSON beside it. Makes the folder; leaves files as they are.

    `NotSupportedError`: the two would be one file. `AccessError`: the place takes neither.
    """
    beside = path.with_suffix(".json")
    if beside == path:
        raise NotSupportedError(
            f"A page can't be {path}, where its JSON goes", "Name the page something like report.md"
        )
    check_writable(path.parent, path, beside)


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
