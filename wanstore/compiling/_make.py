"""Compile a stored pipeline's blocks for presets, try each function out, and seal them beside the pipeline."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wanstore._files import hash_file
from wanstore._formats._json import digest_of
from wanstore._installed import versions
from wanstore._workers import run_worker
from wanstore.building._artifacts import CONVERTER, VERSION, file_name, folder_name, functions_of, read_functions
from wanstore.choices import MemoryMode
from wanstore.compiling._report import CompiledPreset, CompileReport
from wanstore.compiling._worker import Job, Task
from wanstore.errors import WanstoreError
from wanstore.interfaces import Progress, WeightStore
from wanstore.manifest import ConversionRecord, FileEntry, Manifest, SourceRecord
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
    pipeline = store.manifest(name)
    if attention is None:
        attention = pipeline.notes.get("attention")
    stored = functions_of(store, name)
    with tempfile.TemporaryDirectory() as work:
        job = Job(
            "describe", str(store.local_path(name)), tuple(presets), work,
            device=device, dtype=dict(dtype or {}), memory=memory, attention=attention,
        )  # fmt: skip
        run = _Run(job, progress)
        run.describe()
        run.job = attrs.evolve(job, attention=run.made_for["attention"])
        folder = folder_name(name, run.made_for)
        kept = {} if replace else _kept(stored, run.made_for)
        wanted = {preset.clip.shape: preset for preset in presets if preset.clip.shape not in kept}
        run.do("make", list(wanted.values()))
        run.do("try", [preset for preset in wanted.values() if preset.name not in run.failed])
        made = {shape: Path(work, file_name(shape)) for shape, preset in wanted.items() if preset.name in run.tried}
        if made:
            contents = {file_name(shape): data for shape, data in kept.items()}
            contents |= {path.name: path.read_bytes() for path in made.values()}
            _seal(store, folder, pipeline, run, contents)
    found = [
        run.outcome(wanted[preset.clip.shape], preset.name)
        if preset.clip.shape in wanted
        else CompiledPreset(preset.name, "kept")
        for preset in presets
    ]
    return CompileReport(folder if made or kept else "", run.made_for, tuple(found))


def _kept(stored: Sequence[Path], made_for: Mapping[str, str]) -> dict[Any, bytes]:
    """What is stored and fits; what is damaged is made again."""
    try:
        return dict(read_functions(stored, made_for))
    except WanstoreError:
        return {}


def _seal(store: WeightStore, name: str, pipeline: Manifest, run: _Run, contents: Mapping[str, bytes]) -> None:
    with store.stage(name, replace=True) as stage:
        files = []
        for path, data in contents.items():
            (stage.path / path).write_bytes(data)
            files.append(FileEntry(path, len(data), hash_file(stage.path / path)))
        stage.seal(
            Manifest(
                name=name,
                recipe=digest_of({**run.made_for, "version": VERSION}),
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                source=SourceRecord("pipeline", pipeline.name, pipeline.digest),
                conversion=ConversionRecord(CONVERTER, VERSION, dict(run.made_for), {}),
                files=tuple(files),
                versions=versions(("wanstore", "torch", "diffusers")),
            )
        )


@attrs.define
class _Run:
    """Workers' findings: for what functions are, files made with seconds, files tried with differences, failures."""

    job: Job
    progress: Progress
    made_for: dict[str, str] = attrs.field(factory=dict)
    seconds: dict[str, float] = attrs.field(factory=dict)
    tried: dict[str, float] = attrs.field(factory=dict)
    failed: dict[str, str] = attrs.field(factory=dict)

    def describe(self) -> None:
        """Find out what functions made here are for."""
        end = run_worker(_WORKER, self.job, self._on_event)
        if not self.made_for:
            raise WanstoreError(
                f"What to compile for could not be found out: {end.reason}", "Try: wanstore doctor NAME"
            )

    def do(self, task: Task, presets: Sequence[Preset]) -> None:
        """Do it for each preset. One that takes its process down has failed, and the others go on in a new one."""
        names = {file_name(preset.clip.shape): preset.name for preset in presets}
        left = list(presets)
        done = self.seconds if task == "make" else self.tried

        def on_event(event: str, *args: Any) -> None:
            if event in ("made", "tried"):
                done[names[args[0]]] = args[1]
                told = f"made in {args[1]:.1f} s" if event == "made" else f"tried, differs by {args[1]:.1e}"
                self.progress.message(f"{names[args[0]]}: {told}")
            else:
                self._on_event(event, *args)

        while left:
            end = run_worker(_WORKER, attrs.evolve(self.job, task=task, presets=tuple(left)), on_event)
            left = [preset for preset in left if preset.name not in done and preset.name not in self.failed]
            if left:
                self.failed[left.pop(0).name] = end.reason

    def outcome(self, preset: Preset, asked: str) -> CompiledPreset:
        if preset.name in self.tried:
            return CompiledPreset(asked, "made", self.seconds[preset.name], self.tried[preset.name])
        return CompiledPreset(asked, "failed", reason=self.failed[preset.name])

    def _on_event(self, event: str, *args: Any) -> None:
        if event == "made_for":
            self.made_for = args[0]
        elif event == "failed":
            self.failed[args[0]] = args[1]
            self.progress.message(f"{args[0]}: {args[1]}")
        else:
            getattr(self.progress, event)(*args)
