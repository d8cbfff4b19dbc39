"""What a conversion will write, worked out from configs and headers alone, before any long work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import attrs

from wanstore._formats._safetensors import ITEM_BYTES, HeaderError, Tensor, lay_out_file
from wanstore.components import COMPONENTS, check_index
from wanstore.errors import NotFoundError, SourceError
from wanstore.interfaces import ConversionPlan, OutputShard, Source

_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_MAX_JSON_BYTES = 64 << 20
_MAX_POINTER_BYTES = 1024
"""By Git LFS's own specification."""
SHARD_BYTES = 5_000_000_000
"""Largest output file, as diffusers' `save_pretrained` defaults to."""


def make_plan(source: Source, stored_dtype: dict[str, str], shard_bytes: int = SHARD_BYTES) -> ConversionPlan:
    """Plan to store `source` with each tensor's dtype mapped by `stored_dtype` (others stay as they are).

    Raises `SourceError` naming file and tensor, and `NotSupportedError` for another kind of pipeline.
    """
    check_index(_model_index(source), "model_index.json")
    configs = {component: read_source_json(source, f"{component}/config.json") for component in COMPONENTS}
    for component, config in configs.items():
        if "quantization_config" in config:
            raise SourceError(
                f"{component}/config.json describes quantized weights", "Use the repo with the unquantized weights"
            )
    shards: list[OutputShard] = []
    indexes: dict[str, dict[str, Any]] = {}
    copied: list[tuple[str, Tensor, str]] = []
    for component in COMPONENTS:
        files = _store_once(COMPONENTS[component].tied, _component_tensors(source, component), copied)
        planned, weight_map = _plan_component(component, files, stored_dtype, shard_bytes)
        shards += planned
        if len(planned) > 1:
            total = sum(t.size_bytes for shard in planned for t in shard.layout.tensors)
            indexes[f"{component}/{COMPONENTS[component].index_file}"] = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(weight_map.items())),
            }
    paths = [f"{component}/{parts.index_file}" for component, parts in COMPONENTS.items()]
    source_indexes = tuple(path for path in paths if path in source.files)
    return ConversionPlan(
        source, tuple(shards), tuple(_copies(source)), indexes, source_indexes, configs, tuple(copied)
    )


_Files = list[tuple[str, tuple[Tensor, ...]]]
"""Source files with their tensors."""


def _store_once(tied: tuple[str, str] | None, files: _Files, copied: list[tuple[str, Tensor, str]]) -> _Files:
    """`files` with a tied tensor under its first name alone; a second copy is left out, and added to `copied`."""
    if tied is None:
        return files
    first, second = tied
    has_first = any(tensor.name == first for _, tensors in files for tensor in tensors)
    once = []
    for path, tensors in files:
        kept = []
        for tensor in tensors:
            if tensor.name == second and has_first:
                copied.append((path, tensor, first))
            else:
                kept.append(attrs.evolve(tensor, name=first) if tensor.name == second else tensor)
        if kept:
            once.append((path, tuple(kept)))
    return once


def _model_index(source: Source) -> dict[str, Any]:
    if "model_index.json" not in source.files:
        pickles = sorted(path for path in source.files if path.endswith(_PICKLES))
        if pickles:
            raise SourceError(
                f"{source.record.location} has no model_index.json but pickled weights ({pickles[0]})",
                "Use the repo that ends in -Diffusers: wanstore runs no pickles",
            )
        raise NotFoundError(
            f"{source.record.location} has no model_index.json: it is not a diffusers pipeline",
            "Use a diffusers pipeline, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        )
    return read_source_json(source, "model_index.json")


def read_source_json(source: Source, path: str) -> dict[str, Any]:
    """The JSON object in a file of the source. Raises `SourceError`."""
    size = source.files.get(path)
    if size is None:
        raise SourceError(f"{path} is missing from {source.record.location}", "Fetch the source again")
    if size > _MAX_JSON_BYTES:
        raise SourceError(f"{path} has {size} bytes, too many for a JSON file")
    try:
        document = json.loads(source.head(path, size))
    except (ValueError, RecursionError) as error:
        refuse_pointer(source, path)
        raise SourceError(f"{path} is not JSON ({error})", "Fetch the source again") from error
    if not isinstance(document, dict):
        raise SourceError(f"{path} is not a JSON object", "Fetch the source again")
    return document


def _copies(source: Source) -> Iterator[str]:
    """The small files that a pipeline needs, besides its weights."""
    yield "model_index.json"
    for component in COMPONENTS:
        yield f"{component}/config.json"
    for path in ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        if path not in source.files:
            raise SourceError(f"{path} is missing from {source.record.location}", "Fetch the source again")
    refuse_pointer(source, "scheduler/scheduler_config.json")
    yield "scheduler/scheduler_config.json"
    for path in sorted(source.files):
        place = PurePosixPath(path)
        if place.parent.as_posix() == "tokenizer" and place.suffix in (".json", ".model", ".txt"):
            refuse_pointer(source, path)
            yield path


def _plan_component(
    component: str, files: _Files, stored_dtype: dict[str, str], shard_bytes: int
) -> tuple[list[OutputShard], dict[str, str]]:
    groups: list[tuple[str, list[Tensor]]] = []
    for path, tensors in files:
        group: list[Tensor] = []
        size = 0
        for tensor in tensors:
            bytes_after = tensor.elements * ITEM_BYTES[stored_dtype.get(tensor.dtype, tensor.dtype)]
            if group and size + bytes_after > shard_bytes:
                groups.append((path, group))
                group, size = [], 0
            group.append(tensor)
            size += bytes_after
        groups.append((path, group))
    shards, weight_map = [], {}
    for number, (path, group) in enumerate(groups, start=1):
        file = COMPONENTS[component].shard_file(number, len(groups))
        layout = lay_out_file((t.name, stored_dtype.get(t.dtype, t.dtype), t.shape) for t in group)
        by_name = {tensor.name: tensor for tensor in group}
        reads = tuple(by_name[t.name] for t in layout.tensors)
        shards.append(OutputShard(component, f"{component}/{file}", path, reads, layout))
        weight_map.update({tensor.name: file for tensor in group})
    return shards, weight_map


def _component_tensors(source: Source, component: str) -> _Files:
    """The component's shards with their tensors, the index (if there is one) checked against both."""
    single = f"{component}/{COMPONENTS[component].single_file}"
    index_path = f"{component}/{COMPONENTS[component].index_file}"
    if index_path not in source.files:
        if single not in source.files:
            raise _no_weights(source, component)
        return [(single, _tensors(source, single))]
    weight_map = read_source_json(source, index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index_path} has no weight_map", "Fetch the source again")
    for file in weight_map.values():
        # A plain name beside the index: anything else could lead out of the source.
        if not isinstance(file, str) or PurePosixPath(file).name != file or not file.endswith(".safetensors"):
            raise SourceError(f"{index_path} names {file!r}, which is not a safetensors file beside it")
        if f"{component}/{file}" not in source.files:
            raise SourceError(f"{component}/{file} is missing, {index_path} names it", "Fetch the source again")
    shards = [(file, _tensors(source, f"{component}/{file}")) for file in sorted(set(weight_map.values()))]
    held: dict[str, str] = {}
    for file, tensors in shards:
        for tensor in tensors:
            if tensor.name in held:
                raise SourceError(f"{tensor.name} is in both {component}/{held[tensor.name]} and {component}/{file}")
            held[tensor.name] = file
    for name in sorted(weight_map.keys() | held.keys()):
        if held.get(name) != weight_map.get(name):
            where = f"is in {held[name]}" if name in held else "is missing"
            said = f"says {weight_map[name]}" if name in weight_map else "does not know it"
            raise SourceError(f"{component}: tensor {name} {where}, {index_path} {said}", "Fetch the source again")
    return [(f"{component}/{file}", tensors) for file, tensors in shards]


def _no_weights(source: Source, component: str) -> SourceError:
    pickles = sorted(p for p in source.files if p.startswith(f"{component}/") and p.endswith(_PICKLES))
    if pickles:
        return SourceError(
            f"{component} holds only pickled weights ({pickles[0]})", "Use safetensors: wanstore runs no pickles"
        )
    single = COMPONENTS[component].single_file
    stem = re.escape(single.removesuffix(".safetensors"))
    for path in sorted(source.files):
        if match := re.fullmatch(rf"{component}/{stem}\.([^./]+?)(-\d+-of-\d+)?\.safetensors", path):
            return SourceError(
                f"{component} has only the variant {match[1]} of its weights ({path})",
                f"Use a source with {single}: wanstore itself makes float16 of it",
            )
    return SourceError(
        f"{component} has no weights: neither {single} nor its index is there",
        "Fetch the source again",
    )


def refuse_pointer(source: Source, path: str) -> None:
    """Raise `SourceError` if the file is what Git LFS puts in the place of one that was not fetched."""
    size = source.files[path]
    if size <= _MAX_POINTER_BYTES and source.head(path, size).startswith(b"version https://git-lfs.github.com/spec/"):
        raise SourceError(
            f"{path} is a Git LFS pointer, not the file itself",
            "Run git lfs pull where the source was cloned, or use the Hub repo as the source",
        )


def _tensors(source: Source, path: str) -> tuple[Tensor, ...]:
    try:
        tensors = source.tensors(path)
    except HeaderError as error:
        refuse_pointer(source, path)
        raise SourceError(f"{path} is damaged: {error}", "Fetch the source again") from error
    for tensor in tensors:
        if tensor.dtype.startswith("F8"):
            raise SourceError(f"{path}: {tensor.name} is {tensor.dtype}, quantized weights cannot be widened")
    return tensors
