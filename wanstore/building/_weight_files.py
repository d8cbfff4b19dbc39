"""Which files hold a component's weights, and what their headers say. No tensor data is read here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from wanstore._formats._json import read_json
from wanstore.components import COMPONENTS, Component
from wanstore.errors import DamagedError
from wanstore.transfer._weight_file import WeightFile, open_weight_file

_REPAIR = "Run setup again with --replace"


Weights = Mapping[str, tuple[WeightFile, ...]]
"""The weight files of each component."""


@contextmanager
def open_weights(folder: Path, components: Iterable[str] = tuple(COMPONENTS)) -> Iterator[Weights]:
    """The weight files of the components, by component and in the order of their names; closed with the block.

    Raises `DamagedError` naming the file when one is missing, not inside the component's folder, no
    well-formed safetensors file, or holds a tensor that another one holds as well.
    """
    with ExitStack() as stack:
        weights = {}
        for component in components:
            paths = _paths(folder / component, COMPONENTS[component])
            weights[component] = tuple(stack.enter_context(open_weight_file(path)) for path in paths)
            _check_once(weights[component])
        yield weights


def check_fit(
    folder: Path, component: str, files: tuple[WeightFile, ...], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise `DamagedError` naming file and tensor unless `files` hold just the `wanted` floating-point tensors."""
    missing = dict(wanted)
    for file in files:
        for tensor in file.tensors:
            shape = missing.pop(tensor.name, None)
            if shape is None:
                raise DamagedError(f"{file.path}: tensor {tensor.name} does not belong to the model of config.json")
            if tensor.shape != shape:
                raise DamagedError(
                    f"{file.path}: tensor {tensor.name} is {list(tensor.shape)}, config.json asks for {list(shape)}"
                )
            if "F" not in tensor.dtype:
                raise DamagedError(f"{file.path}: tensor {tensor.name} is {tensor.dtype}, not floating-point")
    if missing:
        places = ", ".join(sorted(file.path.name for file in files))
        name = min(missing)
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DamagedError(f"{folder / component}: tensor {name}{more} is in none of its files ({places})")


def _check_once(files: tuple[WeightFile, ...]) -> None:
    holders: dict[str, Path] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor.name in holders:
                raise DamagedError(f"{file.path}: tensor {tensor.name} is in {holders[tensor.name].name} as well")
            holders[tensor.name] = file.path


def _paths(folder: Path, parts: Component) -> list[Path]:
    single, index = folder / parts.single_file, folder / parts.index_file
    if not index.exists():
        return [single]
    if single.exists():
        raise DamagedError(f"{folder} holds both {single.name} and {index.name}: it is not clear which one is meant")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedError(f"{index} has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in {"", ".."} or PurePosixPath(name).name != name or "\0" in name:
            raise DamagedError(f"{index}: tensor {tensor} is said to be in {name!r}, which is not beside it")
    return [folder / name for name in sorted(set(weight_map.values()))]
