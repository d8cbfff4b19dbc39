"""What every converter must do, as tests. A converter's author subclasses `ConverterTests` with one fixture:

    class TestMyConverter(ConverterTests):
        @pytest.fixture
        def converter(self): return MyConverter()

The tests run for float32, bfloat16 and float16 sources. A converter that reads only some of them overrides the fixture
`source_dtype`. They write below `tmp_path` and nowhere else.
"""

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
from wanstore.errors import SourceError, UnreachableError
from wanstore.interfaces import Converter, Progress


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
    (folder / "config.json").write_text(json.dumps({"_class_name": parts.model_class, "made_up": 1}))
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


class CountedSource(FolderSource):
    """A folder that notes what is fetched, and into which folders. It fails at the file `broken`."""

    def __init__(self, folder: Path, broken: str = "") -> None:
        super().__init__(folder)
        self.broken = broken
        self.fetched: list[str] = []
        self.into: set[Path] = set()

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        if path == self.broken:
            raise UnreachableError(f"{path} cannot be fetched")
        self.fetched.append(path)
        self.into.add(into)
        return super().fetch(path, into, progress)


class ConverterTests:
    """The behaviour suite; override the `converter` fixture."""

    @pytest.fixture
    def converter(self) -> Converter:
        raise NotImplementedError("override the `converter` fixture")

    @pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
    def source_dtype(self, request: pytest.FixtureRequest) -> torch.dtype:
        """What the source's tensors are."""
        dtype: torch.dtype = request.param
        return dtype

    @pytest.fixture
    def source(self, tmp_path: Path, source_dtype: torch.dtype) -> CountedSource:
        tensors = [{"a": torch.randn(64, 32), "b": torch.randn(3)}, {"c": torch.randn(128)}]
        weights = {"transformer": tensors, "text_encoder": [{"d": torch.randn(50)}], "vae": [{"e": torch.randn(9, 2)}]}
        typed = {
            component: [{name: tensor.to(source_dtype) for name, tensor in shard.items()} for shard in shards]
            for component, shards in weights.items()
        }
        return CountedSource(write_pipeline(tmp_path / "source", typed))

    def test_it_has_a_name_and_a_version(self, converter: Converter) -> None:
        """They are part of the recipe, which tells what has to be made again."""
        name: object = converter.name
        version: object = converter.version
        assert isinstance(name, str) and name
        assert isinstance(version, int) and version >= 1

    def test_planning_writes_nothing(self, converter: Converter, source: CountedSource) -> None:
        """A plan is made of headers alone."""
        before = {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")}
        converter.plan(source)
        assert {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")} == before and not source.fetched

    def test_every_tensor_arrives_under_its_name_and_shape(
        self, converter: Converter, source: CountedSource, tmp_path: Path
    ) -> None:
        """Any safetensors reader opens the result."""
        converter.convert(converter.plan(source), tmp_path / "target")
        for component in COMPONENTS:
            wanted, got = read_component(source.folder / component), read_component(tmp_path / "target" / component)
            assert {name: t.shape for name, t in got.items()} == {name: t.shape for name, t in wanted.items()}

    def test_floats_are_stored_as_float16(self, converter: Converter, source: CountedSource, tmp_path: Path) -> None:
        """Of the same values, as near as float16 comes to them."""
        converter.convert(converter.plan(source), tmp_path / "target")
        for component in COMPONENTS:
            wanted, got = read_component(source.folder / component), read_component(tmp_path / "target" / component)
            assert {tensor.dtype for tensor in got.values()} == {torch.float16}
            for name, tensor in wanted.items():
                torch.testing.assert_close(got[name].float(), tensor.float(), rtol=2**-10, atol=2**-24)

    def test_configs_arrive_as_they_are(self, converter: Converter, source: CountedSource, tmp_path: Path) -> None:
        """With every key of the source, scheduler and tokenizer included."""
        plan = converter.plan(source)
        converter.convert(plan, tmp_path / "target")
        for path in (path for path in source.files if path.endswith("config.json") or path == "model_index.json"):
            wanted, got = (json.loads((folder / path).read_text()) for folder in (source.folder, tmp_path / "target"))
            assert wanted.items() <= got.items(), path
        assert {component: config["made_up"] for component, config in plan.configs.items()} == dict.fromkeys(
            COMPONENTS, 1
        )

    def test_the_record_sums_up_every_component(
        self, converter: Converter, source: CountedSource, tmp_path: Path
    ) -> None:
        """It says who converted, and what was there before and after."""
        record = converter.convert(converter.plan(source), tmp_path / "target").record
        assert (record.converter, record.version) == (converter.name, converter.version)
        assert record.options == converter.options and record.components.keys() == COMPONENTS.keys()
        for component, summed in record.components.items():
            tensors = read_component(source.folder / component).values()
            parameters = sum(tensor.numel() for tensor in tensors)
            assert (summed.tensors, summed.parameters) == (len(tensors), parameters)
            assert summed.stored_bytes == 2 * parameters and sum(summed.source_dtypes.values()) == len(tensors)
            assert summed.max_abs == max(tensor.abs().max().item() for tensor in tensors)

    def test_the_result_names_every_file_with_its_hash(
        self, converter: Converter, source: CountedSource, tmp_path: Path
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
        self, converter: Converter, source: CountedSource, tmp_path: Path
    ) -> None:
        """Conversion is deterministic: two stores can be compared by hash."""
        first = converter.convert(converter.plan(source), tmp_path / "first")
        assert converter.convert(converter.plan(source), tmp_path / "second") == first

    def test_each_source_file_is_fetched_once(
        self, converter: Converter, source: CountedSource, tmp_path: Path
    ) -> None:
        """And downloads go below `scratch`, where an interrupted one can resume."""
        plan, scratch = converter.plan(source), tmp_path / "scratch"
        scratch.mkdir()
        converter.convert(plan, tmp_path / "target", scratch=scratch)
        assert sorted(source.fetched) == sorted({*plan.source_paths, *plan.copies})
        assert all(folder.is_relative_to(scratch) for folder in source.into)

    def test_an_interrupted_conversion_resumes(
        self, converter: Converter, source: CountedSource, tmp_path: Path
    ) -> None:
        """With the same `scratch`, the shard that was finished is not fetched again. The result is the same."""
        whole = converter.convert(converter.plan(source), tmp_path / "whole")
        target, scratch = tmp_path / "target", tmp_path / "scratch"
        scratch.mkdir()
        first, *_, last = converter.plan(source).source_paths
        with pytest.raises(UnreachableError):
            converter.convert(converter.plan(CountedSource(source.folder, last)), target, scratch=scratch)
        again = CountedSource(source.folder)
        assert converter.convert(converter.plan(again), target, scratch=scratch) == whole
        assert first not in again.fetched and last in again.fetched

    def test_a_missing_shard_is_refused_in_planning(self, converter: Converter, source: CountedSource) -> None:
        """Before any long work, and by name."""
        (source.folder / "transformer/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
        with pytest.raises(SourceError, match="00002-of-00002"):
            converter.plan(FolderSource(source.folder))
