"""The folders of wanstore are what the architecture page says: imports run one way, and what is private is marked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import wanstore

PACKAGE = Path(wanstore.__file__).parent
REFERENCE = PACKAGE.parent / "docs/api.md"

MAY_IMPORT = {
    "cli": {
        "api",
        "benchmarking",
        "compiling",
        "loading",
        "memory",
        "building",
        "transfer",
        "stores",
        "conversion",
        "testing",
        "display",
    },
    "api": {
        "display",
        "reporting",
        "benchmarking",
        "compiling",
        "loading",
        "memory",
        "building",
        "stores",
        "conversion",
    },
    "benchmarking": {"loading", "memory", "building", "lean_imports", "transfer"},
    "reporting": {"display", "benchmarking", "loading"},
    "compiling": {"loading", "memory", "building", "lean_imports", "transfer"},
    "loading": {"memory", "building", "lean_imports", "transfer"},
    "memory": {"building", "transfer"},
    "building": {"lean_imports", "transfer"},
    "testing": {"conversion", "stores"},
    "display": set(),
    "transfer": set(),
    "lean_imports": set(),
    "stores": set(),
    "conversion": {"transfer"},
    "base": set(),
}
"""The rooms that each room may import besides itself and the base: the modules at the package's top."""

OWN_WORLD = {
    "transfer": {"wanstore.errors", "wanstore._error_translation", "wanstore._formats._safetensors"},
    "lean_imports": set(),
}
"""Rooms that know nothing of Wan, and all that they may import of the base."""

FOREIGN = {
    "stores": {"torch", "diffusers", "transformers", "safetensors"},
    "conversion": {"diffusers", "transformers"},
    "lean_imports": {"accelerate"},
    "transfer": {"diffusers", "transformers", "accelerate"},
}
"""Libraries that rooms know nothing of."""

INSIDE = {"transfer", "lean_imports", "building", "display", "reporting"}
"""Rooms that have nothing for users: what their `__init__` exports is for the rooms above."""

MOST_SIBLINGS = 15
"""About a dozen modules: what a reader takes in at a glance."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    return {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The folder that a module lies in; the rest of the top is the base."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in MAY_IMPORT:
        return parts[1]
    return {"wanstore": "face", "wanstore.__main__": "cli"}.get(module, "base")


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Whatever the module imports: at its top, in functions, for types, and by a module's name in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & modules().keys()
            if names - modules().keys():
                yield node.module
        elif isinstance(node, ast.Constant) and node.value in modules() and str(node.value).count(".") > 1:
            yield str(node.value)  # with fewer dots it names a group of entry points, or the package


def arrows() -> dict[str, set[str]]:
    """Who imports whom within the package."""
    return {name: {other for other in imports_of(tree) if other in modules()} for name, tree in modules().items()}


def test_no_circle_of_imports() -> None:
    """Not for types, and not inside functions either."""
    graph = arrows()
    del graph["wanstore"]  # it imports the public names when they are first used
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")


def test_imports_run_one_way() -> None:
    """From the command line down to the base; a room imports only those that the table gives it."""
    wrong = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if room_of(name) != "face" and room_of(other) not in (room_of(name), "base", "face")
        if room_of(other) not in MAY_IMPORT[room_of(name)]
    ]
    assert wrong == []


def test_the_face_is_imported_by_the_command_line_alone() -> None:
    """Whoever else imports `wanstore` itself imports all of it."""
    assert [name for name, others in arrows().items() if "wanstore" in others and room_of(name) != "cli"] == []


def test_transfer_and_lean_imports_know_nothing_of_wan() -> None:
    """Of the base they may import what the table says, so neither presets nor components nor manifests."""
    wrong = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if (room := room_of(name)) in OWN_WORLD and room_of(other) == "base" and other not in OWN_WORLD[room]
    ]
    assert wrong == []


def test_rooms_know_only_their_own_libraries() -> None:
    """A store needs no torch, and a conversion no diffusers."""
    wrong = [
        f"{name} imports {library}"
        for name, tree in modules().items()
        for library in {imported.partition(".")[0] for imported in imports_of(tree)}
        if library in FOREIGN.get(room_of(name), ())
    ]
    assert wrong == []


def test_a_folder_holds_about_a_dozen_modules() -> None:
    """Its `__init__` not counted."""
    folders = [PACKAGE, *(path.parent for path in PACKAGE.rglob("*/__init__.py"))]
    counts = {folder.name: len([path for path in folder.glob("*.py") if path.stem[:2] != "__"]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MOST_SIBLINGS} == {}


# --- what is public


def is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


@cache
def referenced() -> set[str]:
    """The full names that the reference documents."""
    found = set()
    for name, options in re.findall(
        r"^::: ([\w.]+)\n((?:[ ]+.*\n)*)", REFERENCE.read_text() + "\n", flags=re.MULTILINE
    ):
        members = re.search(r"members: \[(.*)\]", options)
        if name in modules():
            chosen = members.group(1).split(", ") if members else public_names(name)
            found |= {f"{name}.{member}" for member in chosen}
        else:
            found.add(name)
    return found


def is_referenced(module: str, name: str) -> bool:
    """By its own name, or, if a package's `__init__` exports it, by that of the module which it comes from."""
    return any(full.startswith(f"{module}.") and full.endswith(f".{name}") for full in referenced())


def public_names(module: str) -> list[str]:
    """What a module defines without an underscore; of an `__init__`, what it says it exports."""
    exported, defined = [], []
    for node in modules()[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if names == ["__all__"]:
                assert isinstance(node.value, ast.List)
                exported = [str(item.value) for item in node.value.elts if isinstance(item, ast.Constant)]
            defined += names
    return [name for name in exported or defined if not name.startswith("_")]


def test_the_package_and_the_reference_agree_on_its_names() -> None:
    """Each name in `wanstore.__all__` is in the reference as `wanstore.NAME`, and no other is there by such a name."""
    documented = {name.removeprefix("wanstore.") for name in referenced() if name.count(".") == 1}
    assert documented == set(wanstore.__all__) - {"__version__"}


def test_whatever_has_no_underscore_is_in_the_reference() -> None:
    """Modules of the command line are reached by the command, so they are not looked at."""
    faces = {f"wanstore.{name}" for name in wanstore.__all__}
    missing = [
        f"{module}.{name}"
        for module in modules()
        if not is_private(module) and room_of(module) not in {"cli", "face", *INSIDE}
        for name in public_names(module)
        if f"wanstore.{name}" not in faces and not is_referenced(module, name)
    ]
    assert missing == []


def test_the_reference_names_nothing_private() -> None:
    """And nothing that is not there."""
    assert [name for name in referenced() if is_private(name)] == []
    for name in referenced():
        module, _, leaf = name.rpartition(".")
        assert module in modules() and leaf in public_names(module), name
