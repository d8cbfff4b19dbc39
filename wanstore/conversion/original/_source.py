"""A source in the original layout, which looks like one in the diffusers layout: the rest of a setup is the same.

No weights are copied for it: the converter reads each tensor where it lies in the published file, and `tensors` says
where that is.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

import attrs

from wanstore._error_translation import plain_os_errors
from wanstore._formats._safetensors import HeaderError, Tensor
from wanstore.components import COMPONENTS
from wanstore.conversion._plan import read_source_json, refuse_pointer
from wanstore.conversion.original._archive import END_BYTES, Archive, check_records, read_archive
from wanstore.conversion.original._configs import make_configs
from wanstore.conversion.original._names import new_name
from wanstore.errors import SourceError
from wanstore.interfaces import Progress, Source

_CONFIG = "config.json"
_ARCHIVES = {"text_encoder": "models_t5_umt5-xxl-enc-bf16.pth", "vae": "Wan2.1_VAE.pth"}
_TOKENIZER = "google/umt5-xxl"
_TRANSFORMER = re.compile(rf"{COMPONENTS['transformer'].weights_stem}(-[0-9]+-of-[0-9]+)?\.safetensors(\.index\.json)?")
_USE_DIFFUSERS = "Use the repo that ends in -Diffusers"


def is_original(files: Collection[str]) -> bool:
    """Whether these are the files of a source in the original layout."""
    return "model_index.json" not in files and any(path in files for path in _ARCHIVES.values())


class OriginalSource(Source):
    """The `published` source, in the layout of Wan-AI/Wan2.1-T2V-1.3B, as if it were in the diffusers layout.

    Its `files` are those of a diffusers folder; `fetch` returns the published file that holds the tensors. Configs are
    made from config.json and from shapes. Raises `SourceError`, and `NotSupportedError` for another kind of model.
    """

    def __init__(self, published: Source) -> None:
        self.record = published.record
        self._published = published
        self._paths = _paths(published)
        self._archives: dict[str, Archive] = {}

    @cached_property
    def files(self) -> dict[str, int]:  # type: ignore[override]
        """As for every source; headers are read for it, so not before somebody asks."""
        sizes = {path: self._published.files[original] for path, original in self._paths.items()}
        return sizes | {path: len(content) for path, content in (self._made | self._index).items()}

    @cached_property
    def _tensors(self) -> dict[str, tuple[Tensor, ...]]:
        """The tensors of each weight file under their new names, in the order of a file that diffusers saves."""
        return {
            path: tuple(sorted(self._renamed(path, original), key=lambda tensor: tensor.name))
            for path, original in self._paths.items()
            if original.endswith((".safetensors", ".pth"))
        }

    @cached_property
    def _made(self) -> dict[str, bytes]:
        """The configs."""
        by_component: dict[str, list[Tensor]] = {component: [] for component in COMPONENTS}
        for path, tensors in self._tensors.items():
            by_component[_component(path)] += tensors
        return make_configs(read_source_json(self._published, _CONFIG), by_component)

    @cached_property
    def _index(self) -> dict[str, bytes]:
        """The index of the transformer's files with the new names of tensors, by its path; empty if there is none."""
        path = f"transformer/{COMPONENTS['transformer'].index_file}"
        if path not in self._paths:
            return {}
        original = self._paths[path]
        index = read_source_json(self._published, original)
        if isinstance(index.get("weight_map"), dict):  # or it stays as it is, for the plan to refuse
            index["weight_map"] = {_new_name(path, original, name): file for name, file in index["weight_map"].items()}
        return {path: json.dumps(index).encode()}

    def head(self, path: str, size: int) -> bytes:
        content = self._made.get(path) or self._index.get(path)
        return self._published.head(self._paths[path], size) if content is None else content[:size]

    def tensors(self, path: str) -> tuple[Tensor, ...]:
        return self._tensors[path]

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        if path == f"transformer/{_CONFIG}":  # what it is made of: a kept source is whole then
            self._published.fetch(_CONFIG, into, progress)
        if path in self._made:
            made = into / path
            with plain_os_errors(made):
                made.parent.mkdir(parents=True, exist_ok=True)
                made.write_bytes(self._made[path])
            return made
        fetched = self._published.fetch(self._paths[path], into, progress)
        if path in self._archives:
            try:
                check_records(fetched, self._archives[path])
            except HeaderError as error:
                raise _unreadable(self._paths[path], error) from error
        return fetched

    def release(self, path: str, fetched: Path) -> None:
        if path in self._made:
            fetched.unlink(missing_ok=True)
        else:
            self._published.release(self._paths[path], fetched)

    def stop(self) -> None:
        self._published.stop()

    def _renamed(self, path: str, original: str) -> Iterator[Tensor]:
        try:
            if original.endswith(".pth"):
                ends = self._published.head(original, END_BYTES), self._published.tail(original, END_BYTES)
                self._archives[path] = read_archive(*ends, self._published.files[original])
                tensors = self._archives[path].tensors
            else:
                tensors = self._published.tensors(original)
        except HeaderError as error:
            refuse_pointer(self._published, original)
            raise _unreadable(original, error) from error
        for tensor in tensors:
            yield attrs.evolve(tensor, name=_new_name(path, original, tensor.name))


def _paths(published: Source) -> dict[str, str]:
    """The path of each published file by its path in a diffusers folder. Raises `SourceError` where one is missing."""
    paths = {f"{component}/{COMPONENTS[component].single_file}": file for component, file in _ARCHIVES.items()}
    transformer = COMPONENTS["transformer"]
    if transformer.index_file not in published.files:
        paths[f"transformer/{transformer.single_file}"] = transformer.single_file
    for original in published.files:
        place = PurePosixPath(original)
        if place.parent.as_posix() == _TOKENIZER:
            paths[f"tokenizer/{place.name}"] = original
        if _TRANSFORMER.fullmatch(original):
            paths[f"transformer/{original}"] = original
    for original in paths.values():
        if original not in published.files:
            raise SourceError(f"{original} is missing from {published.record.location}", "Fetch the source again")
    return paths


def _component(path: str) -> str:
    return path.partition("/")[0]


def _new_name(path: str, original: str, tensor: str) -> str:
    name = new_name(_component(path), tensor)
    if name is None:
        raise SourceError(
            f"{original}: tensor {reprlib.repr(tensor)} is none of a Wan 2.1 {_component(path)}", _USE_DIFFUSERS
        )
    return name


def _unreadable(original: str, error: HeaderError) -> SourceError:
    return SourceError(
        f"{original} cannot be read as weights: {error}",
        "Fetch the source again, or use the repo that ends in -Diffusers",
    )
