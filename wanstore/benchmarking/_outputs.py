"""Whether what a benchmark leaves behind can be written, asked before anything is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.errors import AccessError, AlreadyExistsError, NotSupportedError, WanstoreError


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


def check_replaces(page: Path, environment: Environment | None) -> None:
    """Raise `AlreadyExistsError` if the JSON beside `page` has another device, memory limit or weights.

    Figures of hours on a rented GPU are not to be lost to a try-out. `environment` is None for the report of another
    package's benchmarker, which has no page: it may replace one of its own kind.
    """
    beside = page.with_suffix(".json")
    try:
        old = BenchmarkReport.from_json(beside.read_bytes()).environment
    except FileNotFoundError:
        return
    except (WanstoreError, OSError, RecursionError):  # a folder, or brackets without end
        old = None
    if _measured_on(old) != _measured_on(environment):
        raise AlreadyExistsError(
            f"{beside} would be lost: it is of {_measured_on(old) or 'another program'}",
            "Name another page with --out, or replace this one with --replace-page",
        )


def _measured_on(environment: Environment | None) -> str:
    if environment is None:
        return ""
    cap = environment.memory_cap_gib
    return f"{environment.device}{f' held to {cap:g} GiB' if cap else ''}, {environment.weights}"


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
