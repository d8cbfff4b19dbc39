"""Data classes in and out as JSON, in one place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from wanstore._error_translation import unreadable
from wanstore.errors import DamagedError

T = TypeVar("T")

# A reader must not guess: what is missing is an error, what is new is left alone.
_JSON = cattrs.Converter(forbid_extra_keys=False)


def digest_of(data: Mapping[str, Any]) -> str:
    """SHA-256 of `data` as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(data: Any) -> Any:
    """`data` (an attrs class, or a list of them) as plain dicts and lists, ready for `json.dumps`."""
    return json.loads(json.dumps(_JSON.unstructure(data)))


def from_json(data: Any, cls: type[T]) -> T:
    """The inverse of `to_json`; raises `ValueError` when `data` does not fit."""
    try:
        return _JSON.structure(data, cls)
    except Exception as error:  # cattrs raises groups of many kinds; the caller needs one
        reasons = cattrs.transform_error(error)
        raise ValueError("; ".join(reasons)) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises `DamagedError` when there is none."""
    try:
        data = path.read_bytes()
    except PermissionError as error:
        raise unreadable(path) from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})", "Run setup again with --replace") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that `data` is; `where` names it in the `DamagedError` that is raised when it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not JSON ({error})", "Run setup again with --replace") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{where} is not a JSON object", "Run setup again with --replace")
    return document
