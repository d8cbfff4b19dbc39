"""Proxies for what libraries import at their top and use rarely: the real thing comes when it is first used.

A proxy is only ever bound to a name in the module that wrote the import statement. It is never in
`sys.modules`, so that everybody else's imports, in other threads too, get the real module.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec, resolve_name
from types import ModuleType
from typing import Any

_STOOD_FOR: set[str] = set()
"""Modules that proxies have been made for, and that were not imported when somebody last looked."""


class NameProxy:
    """Stands for a function, class or mapping of a module: whatever is done with it is done with the real one.

    Instance checks do not import the class: as long as nobody has imported it, nothing is an instance.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    @property
    def package(self) -> str:
        """The top-level package that it comes from."""
        return self._module.partition(".")[0]

    def real(self) -> Any:
        """What it stands for; raises what importing it raises."""
        return getattr(import_module(self._module), self._name)

    def imported(self) -> Any:
        """What it stands for if that has been imported, else None."""
        return vars(sys.modules[self._module]).get(self._name) if self._module in sys.modules else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return self._module in sys.modules and isinstance(instance, self.real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._module in sys.modules and issubclass(subclass, self.real())

    def __contains__(self, key: object) -> bool:
        return key in self.real()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.real())

    def __getitem__(self, key: Any) -> Any:
        return self.real()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return NameProxy, (self._module, self._name)

    def __deepcopy__(self, memo: object) -> NameProxy:
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.real(),)


class ModuleProxy(ModuleType):
    """Stands for a module: its attributes are the real one's, but for those that are proxies themselves."""

    def __init__(self, name: str, **proxies: Any) -> None:
        super().__init__(name)
        vars(self).update(proxies)

    @property
    def package(self) -> str:
        """The top-level package that it belongs to."""
        return self.__name__.partition(".")[0]

    def real(self) -> ModuleType:
        """What it stands for, its submodules imported too; raises what importing them raises."""
        for child in vars(self).values():
            if isinstance(child, ModuleProxy):
                child.real()
        return import_module(self.__name__)

    def imported(self) -> ModuleType | None:
        """What it stands for if that, with its submodules, has been imported, else None."""
        children = [child for child in vars(self).values() if isinstance(child, ModuleProxy)]
        return sys.modules.get(self.__name__) if all(child.imported() for child in children) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real(), name, value)


@contextmanager
def importing_proxies(
    importers: Collection[str], modules: Collection[str], names: Mapping[str, Mapping[str, Any]]
) -> Iterator[None]:
    """While the block runs, imports of `modules`, and of `names` from modules, get proxies instead.

    That holds for import statements in the packages `importers` alone. A module that is imported already, or
    is not installed, is imported as usual, and so is a statement that asks for any other name.
    """
    plain_import = builtins.__import__

    def proxy_for(name: str, wanted: Collection[str]) -> ModuleType | None:
        package, _, child = name.partition(".")
        if name in sys.modules or find_spec(package) is None:
            return None
        if wanted:
            known = names.get(name, {})
            return ModuleProxy(name, **known) if known.keys() >= set(wanted) else None
        if name not in modules:
            return None
        return ModuleProxy(package, **({child: ModuleProxy(name)} if child else {}))

    def importing(
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  the names that __import__ has
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        package, found = str((globals or {}).get("__package__", "")), None
        if package.partition(".")[0] in importers:
            absolute = resolve_name("." * level + name, package)
            if absolute in modules or absolute in names:
                found = proxy_for(absolute, fromlist or ())
                if found:
                    _STOOD_FOR.add(absolute)
        return found or plain_import(name, globals, locals, fromlist or (), level)

    with replaced(builtins, __import__=importing):
        yield


def find_proxies(importers: Collection[str], *packages: str) -> list[tuple[dict[str, Any], str, Any]]:
    """The proxies bound in the `importers`' modules, each with the module's namespace and its name there.

    With `packages`, only those for what is in one of them.
    """
    return [
        (vars(module), bound, value)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in importers
        for bound, value in list(vars(module).items())
        if isinstance(value, NameProxy | ModuleProxy) and (not packages or value.package in packages)
    ]


def resolve_imported(importers: Collection[str]) -> None:
    """Replace each proxy whose real thing has been imported since it was bound."""
    imported = {module for module in _STOOD_FOR if module in sys.modules}
    if not imported:  # then there is no need to look through hundreds of modules
        return
    for namespace, bound, proxy in find_proxies(importers):
        real = proxy.imported()
        if real is not None:
            namespace[bound] = real
    _STOOD_FOR.difference_update(imported)


def resolve(importers: Collection[str], *packages: str) -> None:
    """Replace the proxies for what is in `packages` by the real things; raises what importing one raises."""
    for namespace, bound, value in find_proxies(importers, *packages):
        namespace[bound] = value.real()


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """While the block runs, attributes of `owner` have these values, unless it lacks them."""
    before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    for name in before:
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            if getattr(owner, name) is values[name]:
                setattr(owner, name, value)


class _AfterImport:
    """A finder that leaves finding to the others, and runs an action after the import.

    It stays in `sys.meta_path`: other threads may be going through that.
    """

    def __init__(self, module: str, action: Callable[[ModuleType], None]) -> None:
        self._module, self._action, self._done = module, action, False

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != self._module or self._done:
            return None
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(name, path, target) for finder in finders if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        loader: Any = spec.loader if spec else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute = loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self._done = True
            with suppress(Exception):  # the import itself went well, and cannot be had again
                self._action(module)

        loader.exec_module = execute_and_act
        return spec


def after_import(module: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action` with the module as soon as it is imported, which may be now or never. Errors in it are ignored."""
    if module in sys.modules:
        with suppress(Exception):
            action(sys.modules[module])
    else:
        sys.meta_path.insert(0, _AfterImport(module, action))
