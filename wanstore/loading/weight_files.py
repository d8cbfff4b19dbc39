"""Which files hold a component's weights, and what their headers say. No tensor data is read here."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import attrs

from wanstore.components import COMPONENTS, Component
from wanstore.errors import DamagedError
from wanstore.loading.check import read_json
from wanstore.safetensors_format import HeaderError, Tensor, read_header


@attrs.frozen
class WeightFile:
    """A safetensors file; its tensors in the order of their data."""

    path: Path
    tensors: tuple[Tensor, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data, the header not counted."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def find_weights(folder: Path, component: str) -> tuple[WeightFile, ...]:
    """The component's weight files, in the order of their names.

    Raises `DamagedError` naming the file when one is missing, not inside the component's folder, no
    well-formed safetensors file, or holds a tensor that another one holds as well.
    """
    files = tuple(_open_header(path) for path in _paths(folder / component, COMPONENTS[component]))
    holders: dict[str, Path] = {}
    for file in files:
        for tensor in file.tensors:
            if tensor.name in holders:
                raise DamagedError(f"{file.path}: tensor {tensor.name} is in {holders[tensor.name].name} as well")
            holders[tensor.name] = file.path
    return files


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


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor to read `path` by; raises `DamagedError` when there is no such regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise DamagedError(f"{path} is no regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})", "Run setup again with --replace") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _paths(folder: Path, parts: Component) -> list[Path]:
    single, index = folder / parts.single_file, folder / parts.index_file
    if not index.exists():
        return [single]
    if single.exists():
        raise DamagedError(f"{folder} holds both {single.name} and {index.name}: which is meant cannot be told")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedError(f"{index} has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in {"", ".."} or PurePosixPath(name).name != name or "\0" in name:
            raise DamagedError(f"{index}: tensor {tensor} is said to be in {name!r}, which is not beside it")
    return [folder / name for name in sorted(set(weight_map.values()))]


def _open_header(path: Path) -> WeightFile:
    with opened(path) as descriptor:
        try:
            size = os.fstat(descriptor).st_size
            return WeightFile(path, read_header(lambda count: os.pread(descriptor, count, 0), size))
        except HeaderError as error:
            raise DamagedError(f"{path}: {error}", "Run setup again with --replace") from error
