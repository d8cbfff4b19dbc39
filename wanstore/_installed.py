"""What is installed beside wanstore: versions of packages, and the backends that packages register as entry points."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Literal, TypeVar

from wanstore._error_translation import first_line
from wanstore.errors import NotSupportedError, WanstoreError

T = TypeVar("T")


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of `packages`, and Python's; what is absent is left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def make_backend(
    interface: type[T],
    kind: Literal["store", "converter", "benchmarker"],
    name: str,
    built_in: Mapping[str, str],
    make: Callable[[Any], object],
) -> T:
    """What `make` gets from the object that is registered as `name` in the entry-point group of its `kind`.

    `built_in` gives wanstore's own by name: on Modal it is often mere source files, which have no entry points.
    Raises `NotSupportedError` in one line, with the entry point and its package, if there is none or it is broken.
    What the backend itself raises as a `WanstoreError` passes.
    """
    group = f"wanstore.{kind}s"
    if name in built_in:
        entry = EntryPoint(name, built_in[name], group)
    else:
        found = entry_points(group=group)
        if name not in found.names:
            mark = "://" if kind == "store" else ""
            known = ", ".join(f"{one}{mark}" for one in sorted({*built_in, *found.names}))
            raise NotSupportedError(
                f"There is no {kind} {name}{mark}", f"Install a package that adds it, or use one of: {known}"
            )
        entry = found[name]
    package = f"the package {entry.dist.name}" if entry.dist else "wanstore"
    where = f"The {kind} {name!r} ({entry.value}, of {package})"
    factory: Any = _attempt(entry.load, f"{where} cannot be imported", "Install what it needs, or remove the package")
    made = _attempt(lambda: make(factory), f"{where} cannot be made", "Check what it was given")
    if not isinstance(made, interface):
        raise NotSupportedError(
            f"{where} makes a {type(made).__name__}, which is no {interface.__name__}", "Report it to its authors"
        )
    return made


def _attempt(step: Callable[[], object], failed: str, next_step: str) -> object:
    try:
        return step()
    except WanstoreError:
        raise
    except (Exception, SystemExit) as error:  # another's code: whatever it raises
        raise NotSupportedError(f"{failed} ({type(error).__name__}: {first_line(error)})", next_step) from error
