"""On PYTHONPATH, it makes a Python process see what `pip install modal` brings, and no other package.

The rest is there for whoever looks at the disk, and cannot be imported: what a machine has that only starts programs.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from typing import Any


def normalized(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(name: str, found: set[str]) -> set[str]:
    """The distribution and all that it needs, extras left out."""
    name = normalized(name)
    if name not in found:
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return found
        found.add(name)
        for requirement in wanted:
            if "extra ==" not in requirement:
                requirements_of(re.split(r"[^\w.-]", requirement, maxsplit=1)[0], found)
    return found


def absent() -> set[str]:
    """Top-level modules of packages that `modal` does not need; but not wanstore, which lies in the checkout."""
    present = requirements_of("modal", set())
    owners = metadata.packages_distributions().items()
    return {module for module, names in owners if present.isdisjoint(map(normalized, names))} - {"wanstore"}


class OnlyModal(PathFinder):
    """Finds what lies on the path, but for what is absent."""

    names = absent()

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in cls.names else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyModal
