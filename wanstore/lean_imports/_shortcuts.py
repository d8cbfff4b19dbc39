"""Shortcuts for questions that diffusers and transformers ask when they are imported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class PackageMap(Mapping[str, list[str]]):
    """`importlib.metadata.packages_distributions()`, which reads every package's list of files only when needed.

    transformers and diffusers ask for it when they are imported, and then only for packages that have a
    distribution of their own name. `importing()` says whether that is still so.
    """

    _compute = staticmethod(importlib.metadata.packages_distributions)

    def __init__(self, importing: Callable[[], bool]) -> None:
        self._importing = importing
        self._whole: Mapping[str, list[str]] | None = None

    def __getitem__(self, package: str) -> list[str]:
        if self._whole is None and self._importing():
            with suppress(importlib.metadata.PackageNotFoundError):
                return [importlib.metadata.distribution(package).metadata["Name"]]
        return self._all()[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Mapping[str, list[str]]:
        if self._whole is None:
            self._whole = self._compute()
        return self._whole


def scan_models_once(utils: Any) -> None:
    """Let transformers look for the names that its models' files export once, not twice, and at their ends only.

    `utils` is `transformers.utils.import_utils`.
    """
    scan, find_names = getattr(utils, "create_import_structure_from_path", None), getattr(utils, "fetch__all__", None)
    if not scan or not find_names or not hasattr(scan, "cache_info"):
        return

    def scan_folder(path: str | Path) -> Any:  # which a file in it stands for as well
        return scan(str(Path(path).parent if Path(path).is_file() else path))

    utils.create_import_structure_from_path = scan_folder
    utils.fetch__all__ = lambda text: find_names(text[text.rfind("\n__all__") + 1 :])  # the last one in a file counts
