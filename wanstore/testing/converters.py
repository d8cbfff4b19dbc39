"""What every converter must do, as tests: a converter's author subclasses `ConverterTests` with one fixture."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wanstore.components import COMPONENTS, Component
from wanstore.conversion.folder import FolderSource
from wanstore.errors import SourceError
from wanstore.interfaces import Converter


def write_pipeline(folder: Path, weights: dict[str, list[dict[str, torch.Tensor]]]) -> Path:
    """A pipeline folder as it is published, of made-up tensors: `weights` gives each component's shards.

    A component that is left out gets one small tensor. Right for converters, which look at files; no model
    has these tensors.
    """
    index: dict[str, object] = {"_class_name": "WanPipeline"}
    for component, parts in COMPONENTS.items():
        index[component] = [parts.library, parts.model_class]
        _write_component(folder / component, parts, weights.get(component, [{"weight": torch.ones(4)}]))
    for path, document in {
        "model_index.json": index,
        "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler"},
        "tokenizer/tokenizer.json": {"version": "1.0"},
        "tokenizer/tokenizer_config.json": {"pad_token": "<pad>"},
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(document))
    return folder


def _write_component(folder: Path, parts: Component, shards: list[dict[str, torch.Tensor]]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = parts.shard_file(number, len(shards))
        save_file(tensors, folder / file)
        weight_map.update(dict.fromkeys(tensors, file))
    if len(shards) > 1:
        document = {"metadata": {}, "weight_map": weight_map}
        (folder / parts.index_file).write_text(json.dumps(document))


def read_component(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a component, read by the safetensors library."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (no dict)
    return tensors


class ConverterTests:
    """The behaviour suite; override the `converter` fixture."""

    @pytest.fixture
    def converter(self) -> Converter:
        raise NotImplementedError("override the `converter` fixture")

    @pytest.fixture
    def source(self, tmp_path: Path) -> FolderSource:
        tensors = [{"a": torch.randn(64, 32), "b": torch.randn(3)}, {"c": torch.randn(128)}]
        return FolderSource(write_pipeline(tmp_path / "source", {"transformer": tensors}))

    def test_planning_writes_nothing(self, converter: Converter, source: FolderSource) -> None:
        """A plan is made of headers alone."""
        before = {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")}
        converter.plan(source)
        assert {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")} == before

    def test_every_tensor_arrives_under_its_name_and_shape(
        self, converter: Converter, source: FolderSource, tmp_path: Path
    ) -> None:
        """Any safetensors reader opens the result."""
        converter.convert(converter.plan(source), tmp_path / "target")
        for component in COMPONENTS:
            wanted, got = read_component(source.folder / component), read_component(tmp_path / "target" / component)
            assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in wanted.items()}

    def test_the_result_names_every_file_with_its_hash(
        self, converter: Converter, source: FolderSource, tmp_path: Path
    ) -> None:
        """The manifest will list exactly the files that are there."""
        target = tmp_path / "target"
        converted = converter.convert(converter.plan(source), target)
        lying = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
        assert {entry.path for entry in converted.files} == lying.keys()
        for entry in converted.files:
            data = lying[entry.path].read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size_bytes, entry.sha256)

    def test_the_same_source_gives_the_same_bytes(
        self, converter: Converter, source: FolderSource, tmp_path: Path
    ) -> None:
        """Conversion is deterministic: two stores can be compared by hash."""
        first = converter.convert(converter.plan(source), tmp_path / "first")
        assert converter.convert(converter.plan(source), tmp_path / "second") == first

    def test_a_missing_shard_is_refused_in_planning(self, converter: Converter, source: FolderSource) -> None:
        """Before any long work, and by name."""
        (source.folder / "transformer/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
        with pytest.raises(SourceError, match="00002-of-00002"):
            converter.plan(FolderSource(source.folder))
