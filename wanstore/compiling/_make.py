"""Compile a stored pipeline's blocks for presets, try each function out, and seal them beside the pipeline."""

from __future__ import annotations

import datetime
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._json import digest_of
from wanstore._installed import versions
from wanstore._workers import Workers
from wanstore.building._artifacts import CONVERTER, VERSION, file_name, folder_name, functions_of, read_functions
from wanstore.building._dtypes import check_dtypes
from wanstore.choices import MemoryMode
from wanstore.compiling._report import CompiledPreset, CompileReport
from wanstore.compiling._worker import Job, Task
from wanstore.errors import NotSupportedError, WanstoreError
from wanstore.interfaces import Progress, WeightStore
from wanstore.manifest import ConversionRecord, FileEntry, Manifest, SourceRecord
from wanstore.memory._plan import check_memory
from wanstore.presets import Preset

_WORKER = "wanstore.compiling._worker"


def make_functions(
    store: WeightStore,
    name: str,
    presets: Sequence[Preset],
    *,
    device: str | None = None,
    dtype: Mapping[Any, str] | None = None,
    memory: MemoryMode = "auto",
    attention: str | None = None,
    replace: bool = False,
    progress: Progress,
) -> CompileReport:
    """Functions for the blocks of the pipeline `name`, kept in its store; see `wanstore.compile_blocks`."""
    if not presets:
        raise NotSupportedError("There is no preset to compile for", "Name some")
    check_memory(memory)
    pipeline = store.manifest(name)
    if attention is None:
        attention = pipeline.notes.get("attention")
    with tempfile.TemporaryDirectory() as work, Workers(_WORKER) as workers:
        job = Job(
            "describe", str(store.local_path(name)), tuple(presets), work,
            device=None if device is None else str(device), dtype=check_dtypes(dtype), memory=memory,
            attention=attention,
        )  # fmt: skip
        run = _Run(job, workers, progress)
        run.describe()
        folder = folder_name(name, run.made_for)
        missing = _missing(store, name, run, presets)
        if replace or missing:
            # Open from the beginning: what cannot be written is told before minutes of work, and no two runs do it.
            with store.stage(folder, replace=True) as stage:
                run.do("make", list(presets) if replace else missing)
                run.do("try", run.made)
                contents = {file_name(shape): data for shape, data in _kept(store, name, run.made_for).items()}
                contents |= {file: Path(work, file).read_bytes() for file in run.tried}
                if run.tried:
                    stage.seal(_written(folder, pipeline, run, stage.path, contents))
    outcomes = tuple(run.outcome(preset) for preset in presets)
    return CompileReport("" if all(one.status == "failed" for one in outcomes) else folder, run.made_for, outcomes)


def _missing(store: WeightStore, name: str, run: _Run, presets: Sequence[Preset]) -> list[Preset]:
    kept = _kept(store, name, run.made_for)
    return [preset for preset in presets if preset.clip.shape not in kept]


def _kept(store: WeightStore, name: str, made_for: Mapping[str, str]) -> dict[Any, bytes]:
    """What is stored and fits; what is damaged is made again."""
    try:
        return dict(read_functions(functions_of(store, name), made_for))
    except WanstoreError:
        return {}


def _written(name: str, pipeline: Manifest, run: _Run, folder: Path, contents: Mapping[str, bytes]) -> Manifest:
    """Write `contents` into `folder`; the manifest that describes them."""
    files = []
    for path, data in contents.items():
        (folder / path).write_bytes(data)
        files.append(FileEntry(path, len(data), hashlib.sha256(data).hexdigest()))
    return Manifest(
        name=name,
        recipe=digest_of({**run.made_for, "version": VERSION}),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=SourceRecord("pipeline", pipeline.name, pipeline.digest),
        conversion=ConversionRecord(CONVERTER, VERSION, dict(run.made_for), {}),
        files=tuple(files),
        versions=versions(("wanstore", "torch", "diffusers")),
    )


@attrs.define
class _Run:
    """Workers' findings, by the function's file: seconds to make it, how much it differs, or why it failed."""

    job: Job
    workers: Workers
    progress: Progress
    made_for: dict[str, str] = attrs.field(factory=dict)
    seconds: dict[str, float] = attrs.field(factory=dict)
    tried: dict[str, float] = attrs.field(factory=dict)
    failed: dict[str, str] = attrs.field(factory=dict)

    def describe(self) -> None:
        """Find out what functions made here are for."""
        end = self.workers.run(self.job, self._on_event)
        if not self.made_for:
            raise WanstoreError(
                f"What to compile for could not be found out: {end.reason}", "Try: wanstore doctor NAME"
            )
        self.job = attrs.evolve(self.job, attention=self.made_for["attention"])

    def do(self, task: Task, presets: Sequence[Preset]) -> None:
        """Do it for each shape once. One that takes its process down has failed, and the others go on in a new one."""
        left = {file_name(preset.clip.shape): preset for preset in presets}
        done = self.seconds if task == "make" else self.tried
        while left:
            end = self.workers.run(attrs.evolve(self.job, task=task, presets=tuple(left.values())), self._on_event)
            left = {file: preset for file, preset in left.items() if file not in done and file not in self.failed}
            if left:
                file = next(iter(left))
                self._on_event("failed", file, left.pop(file).name, end.reason)

    @property
    def made(self) -> list[Preset]:
        """The presets whose functions were made."""
        return [preset for preset in self.job.presets if file_name(preset.clip.shape) in self.seconds]

    def outcome(self, preset: Preset) -> CompiledPreset:
        file = file_name(preset.clip.shape)
        if file in self.tried:
            return CompiledPreset(preset.name, "made", self.seconds[file], self.tried[file])
        if file in self.failed:
            return CompiledPreset(preset.name, "failed", reason=self.failed[file])
        return CompiledPreset(preset.name, "kept")

    def _on_event(self, event: str, *args: Any) -> None:
        if event == "made_for":
            self.made_for = args[0]
        elif event in ("made", "tried", "failed"):
            file, preset, finding = args
            findings: dict[str, dict[str, Any]] = {"made": self.seconds, "tried": self.tried, "failed": self.failed}
            findings[event][file] = finding
            if event == "made":  # it takes a while: what came of it is in the report
                self.progress.message(f"{preset}: compiled in {finding:.1f} s, to be tried")
        else:
            getattr(self.progress, event)(*args)
