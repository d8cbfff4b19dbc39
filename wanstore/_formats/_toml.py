"""TOML files of presets and prices; errors name the file, the table and the key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import attrs

from wanstore.errors import InvalidSettingError, NotFoundError

_KINDS: dict[object, tuple[type, ...]] = {int: (int,), float: (float, int), str: (str,)}
"""What TOML may hold for a field, by the field's annotation."""


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables. Raises `NotFoundError` or `InvalidSettingError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read ({error.strerror})", "Name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"{path} is not TOML: {error}", "Correct the file") from error


def checked(cls: type[attrs.AttrsInstance], table: object, where: str, but: str = "") -> dict[str, Any]:
    """The table, once every key of it is a field of `cls`, `but` that one, and every value of that field's type.

    `where` begins what the error says: the file and the table.
    """
    if not isinstance(table, Mapping):
        raise InvalidSettingError(f"{where} is {table!r}, not a table", "Give it a [table] of its own")
    kinds = {name: _KINDS[kind] for name, kind in get_type_hints(cls).items() if kind in _KINDS and name != but}
    for key, value in table.items():
        if key not in kinds:
            raise InvalidSettingError(f"{where}: there is no field {key!r}", f"Use {', '.join(kinds)}")
        if isinstance(value, bool) or not isinstance(value, kinds[key]):
            raise InvalidSettingError(f"{where}: {key} is {value!r}, not {_said(kinds[key])}", "Correct the file")
    return dict(table)


def _said(kinds: tuple[type, ...]) -> str:
    return {int: "a whole number", float: "a number", str: "text"}[kinds[0]]
