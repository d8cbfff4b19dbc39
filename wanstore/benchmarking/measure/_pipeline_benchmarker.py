"""Runs presets on a ready pipeline, in this process."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from wanstore._error_translation import first_line, lacks_memory
from wanstore._installed import versions
from wanstore.benchmarking.measure._clip import Watch, measure_clip, watch_memory
from wanstore.benchmarking.measure._nvml import driver_version
from wanstore.benchmarking.measure._reference_clips import open_clip, save_clip
from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.benchmarking.rows import BenchmarkRow, CompiledBlocks, Lossless, Quality, Round
from wanstore.building._artifacts import spelled
from wanstore.errors import DeviceError, DeviceMemoryError, WanstoreError
from wanstore.interfaces import Benchmarker, Progress, Quiet
from wanstore.memory._estimate import GIB
from wanstore.presets import Preset
from wanstore.recipes import model_of

if TYPE_CHECKING:
    from wanstore.loading._pipeline import WanPipeline

WARM_UP_STEPS = 2
"""Denoising steps of a clip that doesn't count: one that sets things up, and one that runs as all later ones do."""
COMPARED_STEPS = 10
"""Denoising steps of clips with compiled blocks and without that are compared: a whole one may take hours."""
_PACKAGES = ("wanstore", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "xformers")


@attrs.frozen
class PipelineBenchmarker(Benchmarker):
    """Measures presets on a pipeline that is loaded: `rounds` clips each, after `warmup` short ones that don't count.

    With `steps`, by preset name, fewer denoising steps than a preset's are run, and the report extrapolates. With
    `pictures` a sheet of each preset's last clip and the clip as an mp4 are saved in that folder, and named in the row.
    Where the model is not `trained`, clips are noise: none is saved there, and scored only against a `reference`.
    `began`, by `time.time`, is when the process started that loads the pipeline and makes its first clip.

    Each preset's last clip has the same prompt and seed in every run, whatever `rounds` and `warmup` are. It is saved
    in the folder `keep_clips`, and compared with the one that another run has saved in the folder `reference`.
    """

    pipe: WanPipeline
    rounds: int = 1
    warmup: int = 0
    steps: Mapping[str, int] = attrs.field(factory=dict)
    trained: bool = True
    pictures: Path | None = None
    keep_clips: Path | None = None
    reference: Path | None = None
    began: float | None = None

    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> BenchmarkReport:
        progress = progress or Quiet()
        rows = tuple(self.measure(preset, progress) for preset in presets)
        environment = attrs.evolve(describe(self.pipe.device), model=model_of(self.pipe.transformer.config))
        return BenchmarkReport(environment, rows)

    def measure(self, preset: Preset, progress: Progress) -> BenchmarkRow:
        """Measure one preset. A failure is reported in the row."""
        with watch_memory(self.pipe.device) as watch:
            try:
                return self._measure(preset, watch, progress)
            except DeviceError as error:  # such as that there is no plan
                return attrs.evolve(row_of(preset, error), memory=watch.peaks())
            except WanstoreError:
                raise
            except (RuntimeError, ValueError, MemoryError) as error:
                return self._with_plan(attrs.evolve(row_of(preset, error), memory=watch.peaks()), watch)

    def _measure(self, preset: Preset, watch: Watch, progress: Progress) -> BenchmarkRow:
        if forget := getattr(self.pipe, "forget_prompts", None):  # a pipeline of diffusers' own keeps none
            forget()  # embeddings kept from another measurement would leave nothing to encode
        counted = attrs.evolve(preset, steps=steps_run(preset, self.steps))
        short = attrs.evolve(counted, steps=min(WARM_UP_STEPS, counted.steps))
        measured, ends = [], []
        joules = watch.joules()
        # Embeddings of a prompt may be kept, so each clip has its own prompt. A service's negative prompt is always the
        # same, so that of all clips is too. Takes count down: the last clip, which others are compared with, is take 1.
        for take in range(self.warmup + self.rounds, 0, -1):
            if take == self.rounds:
                joules = watch.joules()
            warm_up = take > self.rounds
            one, frames = measure_clip(
                self.pipe, short if warm_up else counted, take=take, progress=progress, watch=watch, warm_up=warm_up
            )
            measured.append(one)
            ends.append(time.time())
        spent = watch.joules()
        rounds = tuple(measured[self.warmup :])
        row = BenchmarkRow(
            preset,
            rounds=rounds,
            memory=watch.peaks(),  # before the frames are examined, which takes memory too
            energy_joules=_energy(joules, spent, rounds, preset),
            quality=self._examine(frames, counted) if self.trained or self.reference else None,
            first_clip_seconds=_first_clip(ends[0] - self.began, measured[0], rounds, preset) if self.began else None,
            **self._pictures(frames, preset),
            clip_sha256=save_clip(frames, self.keep_clips, preset) if self.keep_clips else "",
            compiled=self._beside_eager(counted, frames, progress),
            lossless=self._beside_lossless(counted, frames, progress) if counted.lossy else None,
        )
        return self._with_plan(row, watch)

    def _with_plan(self, row: BenchmarkRow, watch: Watch) -> BenchmarkRow:
        """The row with the plan of the last clip's memory, if the pipeline has plans, and what was made of it."""
        row = attrs.evolve(row, phase_peaks_gib=dict(watch.phase_peaks_gib))
        plan = getattr(self.pipe, "memory_plan", None)
        if plan is None:
            return row
        predicted = {phase: size / GIB for phase, size in self.pipe.predicted_peaks(row.preset.clip).items()}
        return attrs.evolve(row, memory_plan=str(plan), predicted_gib=predicted)

    def _beside_eager(self, preset: Preset, frames: Any, progress: Progress) -> CompiledBlocks | None:
        """Compiled blocks, if they were asked for, against the last clip, or a shorter one, made again without."""
        report = getattr(self.pipe, "load_report", None)
        if not (report and report.compiled):
            return None
        loading = sum(phase.seconds for phase in report.phases if phase.name in ("compiler", "compile"))
        functions = self.pipe._functions
        if functions is None or not functions.runs:
            size = spelled(preset.clip.shape)
            if preset.cache:
                why = "the preset's cache takes their place"
            elif size in report.compiled.shapes:
                why = "blocks are not what was compiled: see the log"
            else:
                why = f"there is no whole function for {size} tokens"
            return CompiledBlocks(report.compiled.reason or why, loading)
        from wanstore.benchmarking.measure._quality import compare_clips

        short = attrs.evolve(preset, steps=min(preset.steps, COMPARED_STEPS))
        if short.steps < preset.steps:
            _, frames = measure_clip(self.pipe, short, take=1, progress=progress, warm_up=True)
        with functions.paused():
            eager, without = measure_clip(self.pipe, short, take=1, progress=progress, warm_up=True)
        scores, _ = compare_clips(frames, without)
        return CompiledBlocks("", loading, statistics.median(eager.steps), scores, short.steps)

    def _beside_lossless(self, preset: Preset, frames: Any, progress: Progress) -> Lossless:
        from wanstore.benchmarking.measure._quality import compare_clips

        one, without = measure_clip(self.pipe, preset.lossless, take=1, progress=progress)
        scores, _ = compare_clips(frames, without)
        return Lossless(one.seconds, scores)

    def _examine(self, frames: Any, preset: Preset) -> Quality:
        from wanstore.benchmarking.measure._quality import COMPARED, examine

        if self.reference is None:
            return examine(frames, preset)
        try:
            reference = open_clip(self.reference, preset)
        except ValueError as error:
            quality = examine(frames, preset)
            why = f"No reference clip: {error}"
            return attrs.evolve(quality, missing={**quality.missing, **dict.fromkeys(COMPARED, why)})
        return examine(frames, preset, reference)

    def _pictures(self, frames: Any, preset: Preset) -> dict[str, Any]:
        if self.pictures is None or not self.trained:
            return {}
        from wanstore.benchmarking.measure._contact_sheet import contact_sheet
        from wanstore.generation import write_clip

        sheet = self.pictures / f"{preset.name.replace('/', '-')}.jpg"
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(frames, sheet)
        video = sheet.with_suffix(".mp4")
        write_clip(frames, video)
        return {"frames": (sheet.name,), "video": video.name}


def steps_run(preset: Preset, steps: Mapping[str, int]) -> int:
    """Denoising steps of a measured clip: the preset's, or fewer where `steps` says so.

    All of a lossy preset's: its steps differ, so that the rest cannot be extrapolated from some.
    """
    return preset.steps if preset.lossy else min(preset.steps, steps.get(preset.name, preset.steps))


def row_of(preset: Preset, error: BaseException) -> BenchmarkRow:
    """The row of a preset that failed: out of memory, or something else."""
    out_of_memory = isinstance(error, DeviceMemoryError) or lacks_memory(error)
    return BenchmarkRow(preset, "out of memory" if out_of_memory else "failed", first_line(error))


def describe(device: Any) -> Environment:
    """This machine, as far as a pipeline on `device` sees it."""
    import torch

    driver = None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        driver = driver_version()
    else:
        name = f"{platform.machine()} CPU"
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Environment(
        device=name,
        memory_gib=memory_gib,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions={
            **versions(_PACKAGES),
            **({"cuda": torch.version.cuda} if torch.version.cuda else {}),
            **({"driver": driver} if driver else {}),
        },
    )


def _first_clip(seconds: float, first: Round, rounds: Sequence[Round], preset: Preset) -> float:
    """What the first clip took, `seconds` from the process's start, with all of the preset's steps and all frames.

    A warm-up's frames are not written but for one, which sets up what writes: the others count as in the rounds.
    """
    missing = preset.steps - len(first.steps)
    writing = 0.0 if first is rounds[0] else statistics.median(one.writing for one in rounds)
    return seconds + missing * statistics.median(step for one in rounds for step in one.steps) + writing


def _energy(before: float | None, after: float | None, rounds: Sequence[Round], preset: Preset) -> float | None:
    """Joules of a clip; with fewer steps measured, more in proportion to its seconds."""
    if before is None or after is None:
        return None
    seconds = statistics.mean(one.seconds_at(preset.steps) for one in rounds)
    return (after - before) * seconds / sum(one.seconds for one in rounds)
