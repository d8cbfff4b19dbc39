"""Runs each preset in a fresh process, so that one's memory or failure never colours another's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._json import digest_of, from_json, to_json
from wanstore._workers import Workers
from wanstore.benchmarking._outputs import check_page, check_replaces, check_writable
from wanstore.benchmarking.measure._pipeline_benchmarker import COMPARED_STEPS, WARM_UP_STEPS, steps_run
from wanstore.benchmarking.measure._reference_clips import hash_clip
from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.benchmarking.run._resume import SavedRows
from wanstore.benchmarking.run._worker import Job
from wanstore.building._dtypes import check_dtypes
from wanstore.choices import MemoryMode
from wanstore.errors import DeviceError, NotFoundError, NotSupportedError
from wanstore.interfaces import Benchmarker, Progress, Quiet
from wanstore.manifest import Manifest, read_manifest
from wanstore.memory._plan import check_memory
from wanstore.presets import Preset
from wanstore.recipes import model_in

_WORKER = "wanstore.benchmarking.run._worker"
ALL = "all presets"
"""The progress task of the whole run."""


@attrs.frozen
class ProcessBenchmarker(Benchmarker):
    """Measures presets on the sealed pipeline in a local `folder`, each in a process that loads it again.

    `rounds`, `warmup` and `steps` are as for `PipelineBenchmarker`. `dtype` and `memory` are as for `wanstore.load`,
    and raise what it raises, but that a plan can't be given. `attention` is as for `wanstore.load`, or `auto`: then the
    backends that work are compared on the preset's own shape, and the fastest is used. With folders of
    compiled `functions`, even if there are none, presets run with those that fit, and once more without. `memory_gib`
    holds torch to that much of the GPU. A preset that takes longer than `timeout_seconds`, loading included, is
    stopped.

    With a `report` path, pictures go into `assets/STEM` beside it, and rows are saved as they come in
    `STEM.partial.json`. A stopped run finds them there and measures what is missing, as long as everything that the
    figures depend on is the same. Timeouts and crashes are tried again. `fresh` measures everything again. A report of
    another device, memory limit or other weights is not replaced there, but by `replace_page`.

    Each preset's last clip is saved in the folder `keep_clips`; a preset of a stopped run whose clip is not there is
    measured again. With `reference`, a folder that another run has kept its clips in, rows say how much they differ.
    """

    folder: Path
    device: str | None = None
    rounds: int = 1
    warmup: int = 1
    steps: Mapping[str, int] = attrs.field(factory=dict)
    memory_gib: float | None = None
    dtype: Mapping[str, str] = attrs.field(factory=dict, converter=check_dtypes)
    memory: MemoryMode = attrs.field(default="auto", validator=lambda _, __, asked: check_memory(asked))
    attention: str | None = None
    functions: Sequence[Path] | None = None
    timeout_seconds: float | None = None
    report: Path | None = None
    keep_clips: Path | None = None
    reference: Path | None = None
    fresh: bool = False
    replace_page: bool = False
    command: str = ""

    def __attrs_post_init__(self) -> None:
        if self.keep_clips and self.reference and self.keep_clips.resolve() == self.reference.resolve():
            raise NotSupportedError(
                "Clips can't be kept in the reference folder: they would replace what they are compared with",
                "Name another folder",
            )

    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> BenchmarkReport:
        """A row for each preset, in their order. After Ctrl-C the report holds those that there are by then.

        Raises what `check` raises, and what `wanstore.load` raises when no preset could be loaded: damage, or a device
        or attention backend that is not there.
        """
        progress = progress or Quiet()
        with Workers(_WORKER) as workers:
            return self._run(presets, workers, progress)

    def _run(self, presets: Sequence[Preset], workers: Workers, progress: Progress) -> BenchmarkReport:
        manifest, environment = self._check(workers)
        keys = {preset.name: self._key(preset, manifest, environment) for preset in presets}
        saved = SavedRows(self.report and self.report.with_name(f"{self.report.stem}.partial.json"))
        saved.drop(keys[preset.name] for preset in presets if self.fresh or self._lacks_clip(preset, keys, saved))
        rows = {name: row for name, key in keys.items() if (row := saved.get(key))}
        for name in rows:
            progress.message(f"{name} was measured before by this recipe: not measured again")
        missing = [preset for preset in presets if preset.name not in rows]
        overall = _OverallProgress(progress, {preset.name: self._work(preset) for preset in missing})
        with contextlib.suppress(KeyboardInterrupt):
            for preset in missing:
                row = self._measure(workers, preset, overall, trained=not has_random_weights(manifest))
                rows[preset.name] = row
                saved.keep(keys[preset.name], row)
                overall.done(preset.name)
                progress.message(f"{preset.name}: {_in_short(row)}")
        progress.finish(ALL)
        if all(saved.get(key) for key in keys.values()):
            saved.drop(keys.values())  # there is nothing left to resume
        return BenchmarkReport(environment, tuple(rows[p.name] for p in presets if p.name in rows))

    def check(self) -> None:
        """What `run` checks first, to be asked before other long work.

        Raises `NotFoundError` when the folder is not sealed, `AlreadyExistsError` when a report of something else would
        be lost, and what `check_page` raises when the report or clips can't be written where they should be.
        """
        with Workers(_WORKER) as workers:
            self._check(workers)

    def _check(self, workers: Workers) -> tuple[Manifest, Environment]:
        """The pipeline that will be measured, and on what; see `check`."""
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise NotFoundError(f"{self.folder} holds no sealed pipeline", "Fill a store with wanstore setup")
        if self.report:
            check_page(self.report)
        if self.keep_clips:
            check_writable(self.keep_clips)
        found = self._describe(workers)
        dtype = ", ".join(f"{component}={name}" for component, name in self.dtype.items())
        environment = attrs.evolve(
            found, command=self.command, weights=describe_weights(manifest), dtype=dtype, model=model_in(self.folder),
            memory="" if self.memory == "auto" else self.memory,
        )  # fmt: skip
        if self.report and not self.replace_page:
            check_replaces(self.report, environment)
        return manifest, environment

    def _describe(self, workers: Workers) -> Environment:
        found: list[Environment] = []

        def on_event(event: str, *args: Any) -> None:
            if event == "environment":
                found.append(from_json(args[0], Environment))

        job = Job(str(self.folder), device=self.device, memory_gib=self.memory_gib)
        end = workers.run(job, on_event)
        if not found:
            raise DeviceError(f"The device could not be asked: {end.reason}", "Look at nvidia-smi and the kernel's log")
        return found[0]

    def _measure(self, workers: Workers, preset: Preset, overall: _OverallProgress, *, trained: bool) -> BenchmarkRow:
        found: list[BenchmarkRow] = []

        def on_event(event: str, *args: Any) -> None:
            if event == "row":
                found.append(from_json(args[0], BenchmarkRow))
            else:
                overall.on_event(preset.name, event, args)

        workers.prepare()
        assets = f"assets/{self.report.stem}" if self.report else ""  # as the page has its charts
        job = Job(
            str(self.folder),
            preset,
            device=self.device,
            rounds=self.rounds,
            warmup=self.warmup,
            steps=dict(self.steps),
            memory_gib=self.memory_gib,
            dtype=dict(self.dtype),
            memory=self.memory,
            attention=self.attention,
            functions=None if self.functions is None else tuple(str(one.absolute()) for one in self.functions),
            pictures=str(self.report.absolute().parent / assets) if self.report else None,
            trained=trained,
            keep_clips=str(self.keep_clips.absolute()) if self.keep_clips else None,
            reference=str(self.reference.absolute()) if self.reference else None,
            began=time.time() - workers.prepare_seconds,
        )
        end = workers.run(job, on_event, self.timeout_seconds)
        if found:
            return attrs.evolve(
                found[0],
                frames=tuple(f"{assets}/{name}" for name in found[0].frames),
                video=found[0].video and f"{assets}/{found[0].video}",
            )
        return BenchmarkRow(preset, "timeout" if end.timed_out else "crash", end.reason)

    def _lacks_clip(self, preset: Preset, keys: Mapping[str, str], saved: SavedRows) -> bool:
        """Whether the preset was measured, but its clip is not where it should be, or is another run's."""
        row = saved.get(keys[preset.name])
        if not (self.keep_clips and row and row.worked):
            return False
        return row.clip_sha256 != hash_clip(self.keep_clips, preset)

    def _key(self, preset: Preset, manifest: Manifest, environment: Environment) -> str:
        """Equal for runs whose figures may stand for one another."""
        return preset.name + " " + digest_of({
            "preset": to_json(preset), "steps": steps_run(preset, self.steps), "rounds": self.rounds,
            "warmup": self.warmup, "memory_gib": self.memory_gib, "dtype": dict(self.dtype),
            "memory": self.memory, "attention": self.attention, "weights": manifest.digest,
            "functions": None if self.functions is None else [repr(read_manifest(one)) for one in self.functions],
            "device": environment.device, "machine": environment.machine, "versions": dict(environment.versions),
            "reference": hash_clip(self.reference, preset) or "missing" if self.reference else None,
        })  # fmt: skip

    def _work(self, preset: Preset) -> tuple[int, int]:
        """Steps to run, and what each weighs against another preset's."""
        steps = steps_run(preset, self.steps)
        counted = self.warmup * min(WARM_UP_STEPS, steps) + self.rounds * steps
        if self.functions is not None:
            counted += 2 * COMPARED_STEPS if steps > COMPARED_STEPS else steps
        return counted + (steps if preset.lossy else 0), step_weight(preset)


def step_weight(preset: Preset) -> int:
    """How long a denoising step takes, in an arbitrary unit: good enough to estimate the time left.

    Attention grows with the square of the tokens, all else with their number; the two weigh the same at 30,000
    tokens, by the times of the four presets on an H100.
    """
    tokens = preset.clip.tokens
    return tokens * (tokens + 30_000)


def describe_weights(manifest: Manifest) -> str:
    """What was measured, in words: name, where it came from, and plainly if the weights are random."""
    source = manifest.source
    text = f"{manifest.name}: {source.location} ({source.kind}) at {source.commit[:12]}"
    return f"RANDOM weights, not a trained model. {text}" if has_random_weights(manifest) else text


def has_random_weights(manifest: Manifest) -> bool:
    """Whether its makers say that nothing was trained: clips are noise then."""
    return manifest.notes.get("weights") == "random" or manifest.source.kind == "random"


class _OverallProgress:
    """Passes a worker's progress on, and reports the progress of the whole run."""

    def __init__(self, progress: Progress, work: Mapping[str, tuple[int, int]]) -> None:
        self._progress, self._left, self._weights = progress, {}, {}
        for name, (steps, weight) in work.items():
            self._left[name], self._weights[name] = steps, weight
        progress.start(ALL, sum(steps * weight for steps, weight in work.values()), "%")

    def on_event(self, name: str, event: str, args: Sequence[Any]) -> None:
        getattr(self._progress, event)(*args)
        if event == "advance" and str(args[0]).startswith("generate "):
            self._advance(name, args[1])

    def done(self, name: str) -> None:
        """The preset is over: count the steps that were not run too."""
        self._advance(name, self._left[name])

    def _advance(self, name: str, steps: int) -> None:
        self._left[name] -= steps
        self._progress.advance(ALL, steps * self._weights[name])


def _in_short(row: BenchmarkRow) -> str:
    if not row.worked:
        return f"{row.status}: {row.reason}"
    extrapolated = ", extrapolated" if row.extrapolated else ""
    memory = f", {row.memory.allocated_gib:.1f} GiB" if row.memory else ""
    return f"{row.seconds_p50:.1f} s a clip{extrapolated}{memory}"
