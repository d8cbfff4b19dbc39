"""Converters that are wrong in one way each, and the test of `ConverterTests` that must say so."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import ClassVar

import attrs
import torch
from safetensors.torch import load_file, save_file

from wanstore._files import hash_file
from wanstore.conversion._plan import make_plan
from wanstore.conversion.fp16 import Fp16Converter
from wanstore.interfaces import ConversionPlan, Converted, Progress, Quiet, Source


class WrongConverter(Fp16Converter):
    """Right, but for what a subclass changes; `caught_by` is the test that must fail."""

    caught_by: ClassVar[str]

    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        converted = super().convert(plan, target, scratch=scratch, progress=progress)
        self.spoil(target)
        files = [
            attrs.evolve(entry, size_bytes=(target / entry.path).stat().st_size, sha256=hash_file(target / entry.path))
            for entry in converted.files
        ]
        return Converted(converted.record, tuple(files))

    def spoil(self, target: Path) -> None:
        """Change what was written, before it is hashed."""


class StoresZeros(WrongConverter):
    """Names, shapes and dtypes are right."""

    caught_by = "test_floats_are_stored_as_float16[float32]"

    def spoil(self, target: Path) -> None:
        for path in target.rglob("*.safetensors"):
            save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)


class StoresFloat32(WrongConverter):
    """Twice the size."""

    caught_by = "test_floats_are_stored_as_float16[float32]"

    def spoil(self, target: Path) -> None:
        for path in target.rglob("*.safetensors"):
            save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)


class KeepsBfloat16(WrongConverter):
    """It has as many bits as float16."""

    caught_by = "test_floats_are_stored_as_float16[bfloat16]"

    def plan(self, source: Source) -> ConversionPlan:
        return make_plan(source, {"F64": "F16", "F32": "F16"})


class EmptiesConfigs(WrongConverter):
    """No model can be built from them."""

    caught_by = "test_configs_arrive_as_they_are[float32]"

    def spoil(self, target: Path) -> None:
        for path in target.rglob("config.json"):
            path.write_text("{}")


class HasNoName(WrongConverter):
    """So the recipe has none."""

    caught_by = "test_it_has_a_name_and_a_version"
    name = ""


class HasNoVersion(WrongConverter):
    """So that a new one's work looks like the old one's."""

    caught_by = "test_it_has_a_name_and_a_version"
    version = None  # type: ignore[assignment]


class RecordsNothing(WrongConverter):
    """Nobody can tell what became of the values."""

    caught_by = "test_the_record_sums_up_every_component[float32]"

    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        converted = super().convert(plan, target, scratch=scratch, progress=progress)
        return attrs.evolve(converted, record=attrs.evolve(converted.record, components={}))


class ForgetsAFile(WrongConverter):
    """The manifest would not list it."""

    caught_by = "test_the_result_names_every_file_with_its_hash[float32]"

    def spoil(self, target: Path) -> None:
        (target / "notes.json").write_text(json.dumps({}))


class NeverSame(WrongConverter):
    """The bytes depend on when it ran."""

    caught_by = "test_the_same_source_gives_the_same_bytes[float32]"

    def spoil(self, target: Path) -> None:
        (target / "conversion.json").write_text(tempfile.mktemp())


class IgnoresScratch(WrongConverter):
    """What was done is forgotten, and all of it done again."""

    caught_by = "test_an_interrupted_conversion_resumes[float32]"

    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        return super().convert(plan, target, scratch=Path(tempfile.mkdtemp()), progress=progress)


class DownloadsBesideScratch(IgnoresScratch):
    """Where a download is kept, nobody looks for it."""

    caught_by = "test_each_source_file_is_fetched_once[float32]"


class FetchesTwice(WrongConverter):
    """Once to look, and once to convert."""

    caught_by = "test_each_source_file_is_fetched_once[float32]"

    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        converted = super().convert(plan, target, scratch=scratch, progress=progress)
        for path in plan.source_paths:
            plan.source.fetch(path, scratch or target, progress or Quiet())
        return converted


class PlansByFetching(WrongConverter):
    """A plan that moves gigabytes."""

    caught_by = "test_planning_writes_nothing[float32]"

    def plan(self, source: Source) -> ConversionPlan:
        plan = super().plan(source)
        source.fetch(plan.source_paths[0], Path(tempfile.mkdtemp()), Quiet())
        return plan


WRONG = [one for one in list(globals().values()) if isinstance(one, type) and hasattr(one, "caught_by")]
