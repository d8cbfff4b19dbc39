"""Rows saved to disk as they are measured, so that a killed run can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wanstore._formats._json import from_json, to_json
from wanstore.benchmarking._older_reports import upgraded_row
from wanstore.benchmarking.rows import FINAL, BenchmarkRow


class SavedRows:
    """Rows by their key, which stands for all that a figure depends on; in one JSON file, if there is a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: dict[str, Any] = {}
        if path:
            with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged file only costs a measurement
                found = json.loads(path.read_bytes())
                self._rows = found if isinstance(found, dict) else {}

    def get(self, key: str) -> BenchmarkRow | None:
        """The row of `key` if it was measured for good."""
        try:
            row = from_json(upgraded_row(self._rows[key]), BenchmarkRow)
        except (KeyError, TypeError, ValueError):
            return None
        return row if row.status in FINAL else None

    def keep(self, key: str, row: BenchmarkRow) -> None:
        """Save it; a reader of the file sees the rows before or with it."""
        self._rows[key] = to_json(row)
        self._write()

    def drop(self, keys: Iterable[str]) -> None:
        """Forget these rows; without any the file goes."""
        for key in keys:
            self._rows.pop(key, None)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        if not self._rows:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        new.write_text(json.dumps(self._rows))
        new.replace(self._path)
