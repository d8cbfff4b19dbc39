"""A proxy is the real thing as soon as it is used, and nobody gets it who did not write the import."""

from __future__ import annotations

import builtins
import copy
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wanstore.lean_imports._proxies import ModuleProxy, NameProxy, after_import, importing_proxies, replaced, resolve

HEAVY = """
class Layer:
    kind = "heavy"
STYLES = {"row": 1}
def double(number):
    return 2 * number
"""
LIGHT = """
import heavy_package.tools
from heavy_package.tools import Layer, STYLES, double
"""
NAMES = ("Layer", "STYLES", "double")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `light_package`, which imports names of another, `heavy_package`, at its top."""
    for package, module, code in (("heavy_package", "tools", HEAVY), ("light_package", "user", LIGHT)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in {"heavy_package", "light_package"}]:
        del sys.modules[name]


def user_with_proxies(names: tuple[str, ...] = NAMES) -> Any:
    """`light_package.user`, imported with proxies for `names` of heavy_package.tools."""
    made = {name: NameProxy("heavy_package.tools", name) for name in names}
    with importing_proxies(["light_package"], ["heavy_package.tools"], {"heavy_package.tools": made}):
        return import_module("light_package.user")


def heavy_is_there() -> bool:
    return "heavy_package.tools" in sys.modules


@pytest.mark.usefixtures("packages")
def test_the_real_module_comes_with_the_first_use() -> None:
    """Until a function is called nothing of its module is there; then it is the real one's result."""
    user = user_with_proxies()
    assert not heavy_is_there() and "heavy_package" not in sys.modules
    assert user.double(3) == 6
    assert heavy_is_there() and not isinstance(sys.modules["heavy_package.tools"], ModuleProxy)


@pytest.mark.usefixtures("packages")
def test_asking_for_an_instance_imports_nothing() -> None:
    """Nothing is an instance of a class that nobody has imported; once it is imported, its instances are."""
    user = user_with_proxies()
    assert not isinstance("text", user.Layer) and not issubclass(str, user.Layer)
    assert not heavy_is_there()
    layer = import_module("heavy_package.tools").Layer
    assert isinstance(layer(), user.Layer) and issubclass(layer, user.Layer)
    assert not isinstance("text", user.Layer)


@pytest.mark.usefixtures("packages")
def test_a_class_or_mapping_is_used_as_the_real_one() -> None:
    """Attributes, subclasses, lookups: all of the real thing."""
    user = user_with_proxies()
    assert user.Layer.kind == user.heavy_package.tools.Layer.kind == "heavy"
    derived = type(user.Layer)("heavy_package.tools", "Layer")

    class Own(derived):  # type: ignore[valid-type, misc]
        pass

    assert Own.__mro__[1] is sys.modules["heavy_package.tools"].Layer
    assert "row" in user.STYLES and list(user.STYLES) == ["row"] and user.STYLES["row"] == 1


@pytest.mark.usefixtures("packages")
def test_a_copied_proxy_is_one_still() -> None:
    """Registries that hold proxies can be copied."""
    again = copy.deepcopy({"double": user_with_proxies().double})
    assert not heavy_is_there()
    assert again["double"](2) == 4


@pytest.mark.usefixtures("packages")
def test_an_unknown_name_is_imported_as_ever() -> None:
    """A statement that asks for one name more than is known gets the real module, all of it."""
    user = user_with_proxies(("Layer", "double"))
    assert heavy_is_there() and user.Layer is sys.modules["heavy_package.tools"].Layer


@pytest.mark.usefixtures("packages")
def test_what_is_there_is_used() -> None:
    """A module that somebody has imported before has no proxy."""
    real = import_module("heavy_package.tools")
    assert user_with_proxies().Layer is real.Layer


def test_what_is_not_installed_is_missed(packages: Path) -> None:
    """A package that is not there is an ImportError where it always was, not later."""
    (packages / "heavy_package" / "tools.py").unlink()
    (packages / "heavy_package" / "__init__.py").unlink()
    (packages / "heavy_package").rmdir()
    with pytest.raises(ModuleNotFoundError):
        user_with_proxies()


@pytest.mark.usefixtures("packages")
def test_others_import_the_real_module_meanwhile() -> None:
    """Another thread, and code of other packages, get the real module while the proxies are handed out."""
    found: list[ModuleType] = []

    def look() -> None:
        import heavy_package.tools  # type: ignore[import-not-found]

        found.append(heavy_package.tools)

    before = builtins.__import__
    with importing_proxies(["light_package"], ["heavy_package.tools"], {}):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert not isinstance(found[0], ModuleProxy) and found[0].double(1) == 2
    assert builtins.__import__ is before


@pytest.mark.usefixtures("packages")
def test_resolving_leaves_no_proxy() -> None:
    """The modules that got proxies have the real things afterwards, as if they had been imported plainly."""
    user = user_with_proxies()
    resolve(["light_package"], "heavy_package")
    assert user.double is sys.modules["heavy_package.tools"].double
    assert user.heavy_package is sys.modules["heavy_package"]


def test_settling_what_is_broken_says_so(packages: Path) -> None:
    """The error is the import's own, and the proxy stays."""
    user = user_with_proxies()
    (packages / "heavy_package" / "tools.py").write_text("raise OSError('no such symbol')")
    with pytest.raises(OSError, match="no such symbol"):
        resolve(["light_package"], "heavy_package")
    assert isinstance(user.double, NameProxy)


@pytest.mark.usefixtures("packages")
def test_something_is_done_after_an_import() -> None:
    """Once, when the module is complete; an error in it is nobody's concern."""
    heard: list[int] = []

    def fail(module: ModuleType) -> None:
        heard.append(module.double(2))
        raise RuntimeError

    after_import("heavy_package.tools", fail)
    assert heard == []
    tools = import_module("heavy_package.tools")
    assert heard == [4]
    del sys.modules["heavy_package.tools"]
    assert import_module("heavy_package.tools") is not tools
    assert heard == [4]


def test_what_others_replaced_stays() -> None:
    """A value that somebody else has set meanwhile is not put back; one that was never there is not made."""
    owner = ModuleType("owner")
    vars(owner).update(first=1, second=2)
    with replaced(owner, first=10, second=20, third=30):
        assert (owner.first, owner.second, hasattr(owner, "third")) == (10, 20, False)
        vars(owner).update(second=200)
    assert (owner.first, owner.second) == (1, 200)
