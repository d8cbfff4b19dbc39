"""Which files hold a component's weights, and what their headers say. No tensor data is read here."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

import attrs

from wanstore._safetensors_format import HeaderError, Tensor, read_header
from wanstore.components import COMPONENTS, Component
from wanstore.errors import DamagedError
from wanstore.loading.check import read_json

_REPAIR = "Run setup again with --replace"


@attrs.frozen
class WeightFile:
    """An open safetensors file; its tensors in the order of their data.

    Header and data are read by the one `descriptor`: whatever takes the file's place meanwhile, they belong
    together. `modified_ns` is when it was last written, as of opening it.
    """

    path: Path
    tensors: tuple[Tensor, ...]
    descriptor: int
    modified_ns: int

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data, the header not counted."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def tensor_at(self, position: int) -> str:
        """The name of the tensor that holds byte `position` of the file."""
        return next(tensor.name for tensor in self.tensors if tensor.stop > position)

    def check_unchanged(self) -> None:
        """Raise `DamagedError` when the file was written to since it was opened."""
        status = os.fstat(self.descriptor)
        end = max((tensor.stop for tensor in self.tensors), default=status.st_size)
        if status.st_size != end or status.st_mtime_ns != self.modified_ns:
            raise DamagedError(f"{self.path} was written to while it was read", "Load again; run wanstore verify")


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
        raise DamagedError(f"{folder} holds both {single.name} and {index.name}: which is meant cannot be told")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedError(f"{index} has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in {"", ".."} or PurePosixPath(name).name != name or "\0" in name:
            raise DamagedError(f"{index}: tensor {tensor} is said to be in {name!r}, which is not beside it")
    return [folder / name for name in sorted(set(weight_map.values()))]


@contextmanager
def open_weight_file(path: Path) -> Iterator[WeightFile]:
    """One file, its header read; raises `DamagedError` when it is no well-formed safetensors file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise DamagedError(f"{path} is no regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})", _REPAIR) from error
    try:
        yield _with_header(path, descriptor)
    finally:
        os.close(descriptor)


def _with_header(path: Path, descriptor: int) -> WeightFile:
    try:
        status = os.fstat(descriptor)
        tensors = read_header(lambda count: os.pread(descriptor, count, 0), status.st_size)
    except (HeaderError, OSError) as error:
        raise DamagedError(f"{path}: {error}", _REPAIR) from error
    return WeightFile(path, tensors, descriptor, status.st_mtime_ns)
