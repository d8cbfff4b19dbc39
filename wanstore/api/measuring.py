"""What users call to know what clips cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from wanstore.api._addresses import place_of, presets_of
from wanstore.choices import AttentionBackend, CompileMode, ComponentName, DtypeName, MemoryMode, PresetName
from wanstore.display._progress import shown
from wanstore.interfaces import Progress, WeightStore
from wanstore.recipes import model_in, model_of

if TYPE_CHECKING:
    import diffusers

    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.presets import Preset


def benchmark(
    pipe: diffusers.WanPipeline,
    presets: Sequence[Preset | PresetName] | None = None,
    *,
    progress: Progress | bool | None = None,
) -> BenchmarkReport:
    """Measure time and peak memory of each preset on a ready pipeline, in this process.

    Args:
        pipe: a pipeline, of `load` or of diffusers.
        presets: presets or their names, such as "480p/3s"; the four of production by default.
        progress: receives progress updates, or True for bars.

    Raises:
        NotFoundError: there is no preset of that name.
    """
    from wanstore.benchmarking.measure import PipelineBenchmarker

    chosen = presets_of(presets, model_of(pipe.transformer.config))
    with shown(progress) as progress:
        return PipelineBenchmarker(pipe).run(chosen, progress=progress)


def bench(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    presets: Sequence[Preset | PresetName] | None = None,
    device: str | None = None,
    rounds: int = 1,
    warmup: int = 1,
    steps: int | Mapping[str, int] | None = None,
    memory_gib: float | None = None,
    dtype: Mapping[ComponentName, DtypeName] | None = None,
    memory: MemoryMode = "auto",
    attention: AttentionBackend | Literal["auto"] | None = None,
    compile: CompileMode = "off",
    timeout_seconds: float | None = None,
    report: Path | None = None,
    keep_clips: Path | None = None,
    reference: Path | None = None,
    fresh: bool = False,
    replace_page: bool = False,
    command: str = "",
    progress: Progress | bool | None = None,
) -> BenchmarkReport:
    """Measure what each preset costs on a stored pipeline, each in a fresh process.

    A preset that runs out of memory, times out or crashes is a row of the report, not an error.

    Example:
        ```python
        report = wanstore.bench("wan2.1-fp16", store="/data/models", presets=["480p/3s"], steps=10)
        print(report.safe_preset)
        ```

    Args:
        address: as for `load`.
        store: as for `load`.
        presets: presets or their names, such as "480p/3s"; the four of production by default.
        device: as for `load`.
        rounds: clips of each preset that count.
        warmup: clips of two steps before them that do not.
        steps: run only so many denoising steps, of all presets or by preset name, and extrapolate the rest.
        memory_gib: hold torch to this much of the GPU, so that a larger one stands in for a smaller one's memory.
        dtype: as for `load`.
        memory: as for `load`, except that a plan cannot be given.
        attention: as for `load`, or "auto": the fastest backend on the preset's own shape.
        compile: "cached" measures with the compiled blocks that the store has, and once more without them. "on" first
            makes those that it lacks, as `compile_blocks` does; then "auto" is what is fastest on the largest preset.
        timeout_seconds: stop a preset that takes longer, loading included.
        report: where the page will be written. Pictures go beside it, and rows are saved beside it as they come, so
            that a run that was stopped measures only what is missing.
        keep_clips: save each preset's last clip in this folder.
        reference: a folder of clips kept by an earlier run, to compare with.
        fresh: measure again what a stopped run has measured.
        replace_page: the page may take the place of one of another device, memory limit or other weights.
        command: the command line to show on the page.
        progress: receives progress updates, or True for bars.

    Raises:
        NotFoundError: there is no such pipeline or preset.
        AlreadyExistsError: the page is of another device, memory limit or other weights, and not `replace_page`.
        AccessError: the page or the clips cannot be written where they should go.
        NotSupportedError: arguments that exclude each other, or a device or backend that is not there.
        DamagedError: the stored pipeline is damaged.
    """
    from wanstore.benchmarking.run import ProcessBenchmarker
    from wanstore.building._artifacts import functions_of

    presets_of(presets)  # a wrong name is told before anything is fetched
    place, name = place_of(address, store)
    with shown(progress, place) as progress:
        folder = place.local_path(name)
        chosen = presets_of(presets, model_in(folder))
        benchmarker = ProcessBenchmarker(
            folder,
            device=device,
            rounds=rounds,
            warmup=warmup,
            steps=dict.fromkeys((preset.name for preset in chosen), steps) if isinstance(steps, int) else steps or {},
            memory_gib=memory_gib,
            dtype=dtype,
            memory=memory,
            attention=attention,
            functions=None if compile == "off" else functions_of(place, name),
            timeout_seconds=timeout_seconds,
            report=report,
            keep_clips=keep_clips,
            reference=reference,
            fresh=fresh,
            replace_page=replace_page,
            command=command,
        )
        if compile == "on":
            from wanstore.compiling import make_functions

            benchmarker.check()  # before minutes of compilation
            made = make_functions(
                place, name, chosen, device=device, dtype=dtype, memory=memory, attention=attention, progress=progress
            )
            asked = made.made_for["attention"]
            benchmarker = attrs.evolve(benchmarker, attention=asked, functions=functions_of(place, name))
        return benchmarker.run(chosen, progress=progress)
