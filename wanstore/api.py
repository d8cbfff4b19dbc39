"""What users call: setup, load, activate, bench and others. Each puts the folders below together."""

from __future__ import annotations

import datetime
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs

from wanstore._installed import versions
from wanstore._setup import (
    SetupPlan,
    check_fits_models,
    check_free_space,
    check_small_files,
    check_staged,
    existing_manifest,
    fetch_small_files,
    largest_on_its_way,
    make_converter,
    open_source,
    recipe_of,
    what_to_do,
)
from wanstore.choices import (
    AttentionBackend,
    CompileMode,
    ComponentName,
    DtypeName,
    MemoryMode,
    PresetName,
    WeightsMode,
)
from wanstore.display._progress import shown
from wanstore.errors import NotFoundError, NotSupportedError, WanstoreError
from wanstore.interfaces import Converter, Progress, VerifyReport, WeightStore
from wanstore.manifest import Manifest
from wanstore.recipes import model_in, model_of
from wanstore.stores import open_store
from wanstore.stores._names import STORE_VARIABLE, check_name, split_address

if TYPE_CHECKING:
    import diffusers
    import torch

    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.compiling import CompileReport
    from wanstore.loading import LoadReport
    from wanstore.loading._pipeline import WanPipeline
    from wanstore.memory import MemoryPlan
    from wanstore.presets import Preset

_MADE_WITH = ("wanstore", "torch", "safetensors", "huggingface_hub", "numpy")
_HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def setup(
    source: str,
    store: WeightStore | str | Path | None = None,
    *,
    name: str = "wan2.1-fp16",
    revision: str | None = None,
    replace: bool = False,
    converter: Converter | str = "fp16",
    keep_source: Path | None = None,
    connections: int | None = None,
    notes: Mapping[str, str] | None = None,
    progress: Progress | bool | None = None,
) -> Manifest:
    """Fetch published weights, convert them to float16, and seal them in a store.

    Calling it again with the same recipe (source, converter and options) does nothing. An interrupted call is resumed
    by the next one.

    Example:
        ```python
        store = wanstore.open_store("/data/models")
        wanstore.setup("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", store, name="wan2.1-fp16")
        ```

    Args:
        source: a Hub repo in the Diffusers or the original layout of Wan 2.1, as `OWNER/NAME`, or such a folder.
        store: a store, or the path or URL of one; by default the one that the variable `WANSTORE_STORE` names.
        name: what the store calls the pipeline.
        revision: a branch, tag or commit of the repo; `main` by default.
        replace: replace a stored pipeline of that name in one step. One of the same recipe is verified, and made again
            if it is damaged.
        converter: a converter, or the name of an installed one.
        keep_source: a folder in which the downloaded source is kept.
        connections: how many parts of a file come from the Hub at once; 8 by default.
        notes: recorded in the manifest beside the `model`, for whoever loads the pipeline, such as `attention`, the
            backend to use on a GPU. They are not part of the recipe.
        progress: receives progress updates, or True for bars.

    Returns:
        The manifest of the sealed pipeline.

    Raises:
        AlreadyExistsError: `name` holds another recipe, and not `replace`.
        SourceError: the source cannot be converted as it is.
        ConversionRefusedError: values would not survive float16.
        DamagedError: the converter wrote what could not be loaded, or tensors that are not float16.
        NotFoundError, AccessError, UnreachableError: the source cannot be had.
        DiskFullError, BusyError: the store cannot be written.
    """
    check_name(name)
    store = _as_store(store)
    converter = make_converter(converter) if isinstance(converter, str) else converter
    with shown(progress) as progress:
        published = open_source(source, revision, keep=keep_source, connections=connections, progress=progress)
        recipe = recipe_of(published.record, converter)
        existing = existing_manifest(store, name, recipe, replace, progress)
        if existing:
            whole, kept = ", and whole" if replace else "", ", and no source to keep" if keep_source else ""
            progress.message(f"{name} is already there, made by the same recipe{whole}: nothing to do{kept}")
            store.sweep()
            return existing
        with store.stage(name, replace=replace, resume=recipe) as stage:
            try:
                plan = converter.plan(published)
                check_free_space(plan, stage, keep_source)
                small_files = fetch_small_files(plan, stage.scratch, progress)
                with largest_on_its_way(plan, stage, progress) as plan:
                    check_fits_models(plan)
                    tokenizer = check_small_files(small_files, stage.scratch)
                    converted = converter.convert(plan, stage.path, scratch=stage.scratch, progress=progress)
                check_staged(stage.path, converter, tokenizer)
                if keep_source:
                    for path in plan.source_indexes:
                        published.fetch(path, keep_source, progress)
            except WanstoreError as error:
                if not error.resumable:  # there is nothing to resume: leave the store as it was
                    stage.discard()
                raise
            manifest = Manifest(
                name=name,
                recipe=recipe,
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                source=published.record,
                conversion=converted.record,
                files=converted.files,
                versions=versions(_MADE_WITH),
                notes={**({"model": model} if (model := model_in(stage.path)) else {}), **(notes or {})},
            )
            stage.seal(manifest)
        return manifest


def plan_setup(
    source: str,
    store: WeightStore | str | Path | None = None,
    *,
    name: str = "wan2.1-fp16",
    revision: str | None = None,
    replace: bool = False,
    converter: Converter | str = "fp16",
    progress: Progress | bool | None = None,
) -> SetupPlan:
    """What `setup` with these arguments would download and store, and whether it fits. Nothing is written.

    Headers are read, no weights. What `setup` would refuse by them is refused here.

    Example:
        ```python
        plan = wanstore.plan_setup("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "/data/models")
        print(plan.fetched_bytes, plan.fits)
        ```

    Args:
        source: as for `setup`.
        store: as for `setup`.
        name: as for `setup`.
        revision: as for `setup`.
        replace: as for `setup`. A stored pipeline of the same recipe is not verified here.
        converter: as for `setup`.
        progress: receives progress updates, or True for bars.

    Raises:
        AlreadyExistsError, SourceError, NotFoundError, AccessError, UnreachableError: as for `setup`.
    """
    check_name(name)
    store = _as_store(store)
    converter = make_converter(converter) if isinstance(converter, str) else converter
    with shown(progress) as progress:
        published = open_source(source, revision, progress=progress)
        todo, _ = what_to_do(store, name, recipe_of(published.record, converter), replace)
        if todo == "nothing":
            return SetupPlan(name, todo, published.record)
        plan = converter.plan(published)
        check_fits_models(plan)
        fetched = published.record.kind == "hub"
        return SetupPlan(
            name=name,
            todo=todo,
            source=published.record,
            model=model_of(plan.configs["transformer"]),
            fetched_bytes=plan.source_bytes if fetched else 0,
            stored_bytes=plan.stored_bytes,
            peak_bytes=plan.peak_bytes if fetched else plan.stored_bytes,
            free_bytes=store.free_bytes(),
            files=tuple(shard.path for shard in plan.shards),
        )


def copy(
    name: str,
    source: WeightStore | str | Path,
    target: WeightStore | str | Path,
    *,
    replace: bool = False,
    progress: Progress | bool | None = None,
) -> Manifest:
    """Copy a stored pipeline to another store: the same bytes, the same manifest, the same digest.

    Every byte is compared with its hash on the way. Nobody sees the copy before it is whole. An interrupted call is
    resumed by the next one, which copies the files that are missing. Files go from one store to the other without a
    copy in the cache, except that one for a Modal Volume, from outside, is staged there. Compiled functions stay
    behind: they are for one GPU, and made again there.

    Example:
        ```python
        wanstore.copy("wan2.1-fp16", "modal://anime-models", "/data/models")
        ```

    Args:
        name: the pipeline, in both stores.
        source: the store that has it, or its path or URL.
        target: the store that gets it, or its path or URL.
        replace: replace another pipeline of that name in one step. The same one is verified, and copied again if it is
            damaged.
        progress: receives the bytes copied, or True for bars.

    Returns:
        The manifest. If the target has it already, nothing is done.

    Raises:
        NotFoundError: the source has no such pipeline.
        AlreadyExistsError: the target has another one of that name, and not `replace`.
        DamagedError: the source is not what its manifest says. The target stays as it was.
        ChangedError: the source was replaced meanwhile.
        NotSupportedError: both are the same store.
        DiskFullError, AccessError, BusyError: the target cannot be written.
    """
    from wanstore.building._artifacts import is_compiled
    from wanstore.stores._copy import copy_pipeline

    source, target = _as_store(source), _as_store(target)
    manifest = source.manifest(check_name(name))
    if is_compiled(manifest):
        raise NotSupportedError(f"{name} holds compiled functions, which are for one GPU", "Use wanstore compile there")
    with shown(progress) as progress:
        copy_pipeline(manifest, source, target, replace=replace, progress=progress)
    return manifest


def verify(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    progress: Progress | bool | None = None,
) -> VerifyReport:
    """Hash every file of a stored pipeline again, and name each one that is damaged, missing or extra.

    Example:
        ```python
        report = wanstore.verify("wan2.1-fp16", store="/data/models", progress=True)
        print(report.ok, report.damaged)
        ```

    Args:
        address: as for `load`.
        store: as for `load`.
        progress: receives the bytes hashed, or True for bars.

    Raises:
        NotFoundError: there is no such pipeline.
        DamagedError: its manifest cannot be read.
    """
    place, name = _place_of(address, store)
    with shown(progress) as progress:
        return place.verify(name, progress=progress)


def load(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    device: str | torch.device | None = None,
    weights: WeightsMode = "resident",
    dtype: Mapping[ComponentName, DtypeName | torch.dtype] | None = None,
    attention: AttentionBackend | None = None,
    memory: MemoryMode | MemoryPlan = "auto",
    compile: CompileMode = "off",
    verify: bool = False,
    sealed: bool = True,
    cache: bool = True,
    progress: Progress | bool | None = None,
) -> WanPipeline:
    """Load a stored pipeline: ready, in float16, and bit for bit what diffusers builds.

    It is what `from_pretrained(folder, dtype=torch.float16)` gives: weights, buffers, dtypes, configs and ties are the
    same. The tokenizer differs on purpose: it encodes as the stored tokenizer.json says, where transformers 5's T5
    class rebuilds it and gives other ids for some prompts. No file mapping, open file, thread or socket outlives the
    call, but for a lock in the cache where weights of a remote store may be read again: on a GPU, unless `memory` is
    "resident".

    For a memory snapshot, call it with `device="cpu"`, and with `weights="deferred"` if the weights are to be read
    after the restore. CUDA is then neither used nor asked whether it is there. Call `activate` after the restore.

    Example:
        ```python
        pipe = wanstore.load("wan2.1-fp16", store="/data/models", device="cuda")
        pipe = wanstore.load("modal://anime-models/wan2.1-fp16")  # the same by one address
        frames = pipe("a red fox runs through deep snow", num_frames=49).frames[0]
        print(pipe.load_report)
        ```

    Args:
        address: the name of a pipeline in `store`, or, without one, an address such as `modal://volume/name` or
            `folder/name`.
        store: a store, or the path or URL of one. For a name alone it is by default the one that the variable
            `WANSTORE_STORE` names, or else the current folder.
        device: where the pipeline goes: "cuda" where there is one, else "cpu". None or "cpu" when deferred.
        weights: "resident" reads them now, "deferred" leaves them to `activate`.
        dtype: "float16" or "float32" (or torch's own) by component. `{"vae": "float32"}` widens the VAE's weights on
            the device, as `from_pretrained(dtype={"vae": torch.float32, "default": torch.float16})` does. Components
            that are not named compute in float16.
        attention: an attention backend of diffusers, such as "xformers", used on a GPU where it works. By default the
            one that the manifest records, if any.
        memory: how much of a GPU's memory a clip may take. "auto" chooses for each clip the quickest plan that fits:
            the text encoder, 80 % of the weights, may have to be offloaded while it does not work, and is read back
            from the folder. "offload" always offloads it. "resident" keeps everything on the device, and diffusers' own
            VAE decodes. A `MemoryPlan` says in detail what to do. No clip changes by it.
        compile: whether the transformer's blocks run compiled, which is quicker and changes clips by what no eye sees.
            "cached" takes the functions that `compile_blocks` has stored beside the pipeline, if they fit this GPU and
            these versions; clips of other sizes are made as with "off". With "on" those are compiled first, which takes
            many seconds, once for each size. Functions are code: they run what whoever can write into the store wants.
        verify: compare every file's SHA-256 with the manifest, not only its size.
        sealed: the folder must have a manifest and match it. With False any Wan 2.1 pipeline folder on this machine
            will do, whoever wrote it.
        cache: keep what an object store sends in the cache, and read it from there the next time. With False the
            weights go straight to the device, hashed in passing, and nothing is kept: for a machine that loads once.
        progress: receives the bytes checked and loaded, or True for bars.

    Returns:
        The pipeline, with a `load_report` of the phases' seconds and bytes.

    Raises:
        NotFoundError: there is no such pipeline, or no manifest in the folder.
        DamagedError: files are not what the manifest, the configs or their own headers say, or not readable.
        ChangedError: another pipeline took the folder's place during the load.
        DeviceError: the device has too little memory, or failed.
        NotSupportedError: another kind of pipeline, a device or attention backend that is not there, another component
            or dtype than those above, or arguments that exclude each other.
    """
    from wanstore.building._artifacts import functions_of
    from wanstore.loading._load import load_folder
    from wanstore.stores.cache._uses import released

    functions: list[Path] = []
    with shown(progress) as progress, ExitStack() as stack:
        stream = None
        if sealed:
            place, name = _place_of(address, store)
            stream = None if cache else stack.enter_context(place.streamed(name))
            folder = stream.folder if stream else place.local_path(name)
            if compile != "off":
                functions = functions_of(place, name)
        else:
            folder = _unsealed_folder(address, store)
        stack.enter_context(released(folder, *functions))
        pipe = load_folder(
            folder, device=device, weights=weights, dtype=dtype, attention=attention, memory=memory, compile=compile,
            functions=functions, verify=verify, sealed=sealed, progress=progress, stream=stream,
        )  # fmt: skip
        if weights == "resident":
            _hold_while_read_again(pipe)
    return pipe


def activate(
    pipe: WanPipeline, device: str | torch.device | None = None, *, progress: Progress | bool | None = None
) -> WanPipeline:
    """Bring a prepared pipeline onto its device, ready to generate: what to do after a memory snapshot was restored.

    Deferred weights are read from the folder that the pipeline was prepared from, which must still hold the same
    files. Weights that are in memory are moved. Python's, numpy's and torch's random generators get new seeds each
    time, because all clones of a snapshot would draw the same numbers. The attention backend is applied once the
    pipeline is on a GPU. What has been done already is not done again.

    Example:
        ```python
        pipe = wanstore.load("modal://anime-models/wan2.1-fp16", device="cpu", weights="deferred")  # before
        wanstore.activate(pipe, "cuda")  # after each restore
        ```

    Args:
        pipe: what `load` returned.
        device: "cuda" where there is one, else "cpu".
        progress: receives the bytes loaded, or True for bars.

    Returns:
        `pipe` itself, with an `activation_report`.

    Raises:
        ChangedError: the folder holds another pipeline than the one that was prepared.
        NotFoundError: the folder is gone.
        DamagedError, DeviceError: as for `load`. The pipeline is as it was: activate it again.
        NotSupportedError: the device is not there, or another loader made the pipeline.
    """
    from wanstore.loading._activate import activate_pipeline

    with shown(progress) as progress:
        activate_pipeline(pipe, device, progress=progress)
    _hold_while_read_again(pipe)
    return pipe


def compile_blocks(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    presets: Sequence[Preset | PresetName] | None = None,
    device: str | None = None,
    dtype: Mapping[ComponentName, DtypeName] | None = None,
    memory: MemoryMode = "auto",
    attention: AttentionBackend | Literal["auto"] | None = None,
    replace: bool = False,
    progress: Progress | bool | None = None,
) -> CompileReport:
    """Compile a stored pipeline's transformer blocks for clips of these sizes, and keep the functions in its store.

    Loads with `compile="cached"` use them, on a GPU of the same name with the same versions. Functions are made in one
    process and tried in another: one that crashes, or changes a latent by more than a fiftieth of its size, is not
    stored. What the store has already is not made again.

    Example:
        ```python
        print(wanstore.compile_blocks("wan2.1-fp16", store="/data/models", presets=["480p/3s"]).presets)
        pipe = wanstore.load("wan2.1-fp16", store="/data/models", compile="cached")
        ```

    Args:
        address: as for `load`.
        store: as for `load`. It is written to.
        presets: presets or their names, such as "480p/3s"; the four of production by default.
        device: as for `load`.
        dtype: as for `load`.
        memory: as for `load`, except that a plan cannot be given.
        attention: as for `load`, or "auto": the fastest on the largest preset's own shape.
        replace: make again what is there.
        progress: receives progress updates, or True for bars.

    Raises:
        NotFoundError: there is no such pipeline or preset.
        NotSupportedError: a device that is not there.
        DiskFullError, AccessError, BusyError: the store cannot be written.
    """
    from wanstore.compiling import make_functions

    _presets(presets)  # a wrong name is told before anything is fetched
    place, name = _place_of(address, store)
    chosen = _presets(presets, model_in(place.local_path(name)))
    with shown(progress) as progress:
        return make_functions(
            place, name, chosen, device=device, dtype=dtype, memory=memory, attention=attention, replace=replace,
            progress=progress,
        )  # fmt: skip


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

    chosen = _presets(presets, model_of(pipe.transformer.config))
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
    from wanstore.compiling import make_functions

    _presets(presets)  # a wrong name is told before anything is fetched
    place, name = _place_of(address, store)
    folder = place.local_path(name)
    chosen = _presets(presets, model_in(folder))
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
    with shown(progress) as progress:
        if compile == "on":
            benchmarker.check()  # before minutes of compilation
            made = make_functions(
                place, name, chosen, device=device, dtype=dtype, memory=memory, attention=attention, progress=progress
            )
            asked = made.made_for["attention"]
            benchmarker = attrs.evolve(benchmarker, attention=asked, functions=functions_of(place, name))
        return benchmarker.run(chosen, progress=progress)


def report(
    address: str | Path,
    out: str | Path | None = None,
    *,
    store: WeightStore | str | Path | None = None,
    load_report: LoadReport | None = None,
    benchmarks: BenchmarkReport | None = None,
) -> Path:
    """Write a page about a stored pipeline: one HTML file, which fetches nothing and runs nothing.

    It has the manifest, the size of each component and the conversion's error of each layer, and what else is given.

    Example:
        ```python
        pipe = wanstore.load("wan2.1-fp16", store="/data/models")
        wanstore.report("wan2.1-fp16", store="/data/models", load_report=pipe.load_report)
        ```

    Args:
        address: as for `load`. A remote store's pipeline is downloaded into the cache.
        out: the page; by default the pipeline's name with `-report.html`, in the current folder. An existing file is
            replaced.
        store: as for `load`.
        load_report: shown as the phases of a load.
        benchmarks: shown as charts of time and memory.

    Returns:
        Where the page is.

    Raises:
        NotFoundError: there is no such pipeline.
        DamagedError: its manifest, or the records of its conversion, cannot be read.
        NotSupportedError: the folder holds compiled functions.
        WanstoreError: the page cannot be written.
    """
    from wanstore.building._artifacts import is_compiled
    from wanstore.reporting import write_report

    place, name = _place_of(address, store)
    manifest = place.manifest(name)
    if is_compiled(manifest):
        raise NotSupportedError(f"{name} holds compiled functions, and no pipeline", "Name the pipeline")
    page = Path(f"{name}-report.html" if out is None else out)
    write_report(manifest, place.local_path(name), page, load=load_report, benchmarks=benchmarks)
    return page


def _as_store(store: WeightStore | str | Path | None) -> WeightStore:
    return store if isinstance(store, WeightStore) else open_store(store)


def _hold_while_read_again(pipe: WanPipeline) -> None:
    """Keep the folder in the cache, if it is there, while a clip may have to read offloaded weights back from it.

    Nothing else is held: a memory snapshot keeps no open file.
    """
    from wanstore.stores.cache._uses import hold, release

    folder = pipe._origin.folder
    if pipe._origin.offloads_on(pipe.device.type):
        hold(folder)
        weakref.finalize(pipe, release, folder)


def _place_of(address: str | Path, store: WeightStore | str | Path | None) -> tuple[WeightStore, str]:
    """The store and name of a pipeline: `address` is its name in `store`, or says both."""
    text = str(address)
    if store is None:
        store = _store_of_names(text)
    elif _HUB_REPO.fullmatch(text):
        raise _not_stored(text)
    if store is None:
        store, text = split_address(text)
    return _as_store(store), text


def _store_of_names(address: str) -> str | None:
    """The store that `WANSTORE_STORE` names if `address` is a name alone; None if the address says where to look.

    Raises `NotFoundError` for a name that no store is there for, and for what looks like a repo of the Hub.
    """
    if "/" not in address:
        store = os.environ.get(STORE_VARIABLE)
        if not (store or os.path.exists(address)):  # noqa: PTH110 - Path's own raises where a name is too long
            raise NotFoundError(
                f"There is no {address!r} in the current folder", f"Name its store, or set {STORE_VARIABLE}"
            )
        return store or None
    if _HUB_REPO.fullmatch(address) and not Path(address).parent.exists():
        raise _not_stored(address)
    return None


def _not_stored(repo: str) -> NotFoundError:
    return NotFoundError(
        f"There is no pipeline {repo} here", f"If it is a Hub repo, store it first: wanstore setup {repo} --store STORE"
    )


def _presets(wanted: Sequence[Preset | PresetName] | None, model: str = "") -> list[Preset]:
    """Those that are asked for; names stand for the model's presets."""
    from wanstore.presets import PRESETS, Preset, load_presets, preset_named

    if isinstance(wanted, str | Preset):  # letter by letter it would be a sequence of names
        raise NotSupportedError(
            "presets is one preset, not a list of them", f"Give a list, such as ['{next(iter(PRESETS))}']"
        )
    presets = load_presets(None, model)
    chosen = presets.values() if wanted is None else wanted
    return [preset_named(preset, presets) if isinstance(preset, str) else preset for preset in chosen]


def _unsealed_folder(address: str | Path, store: WeightStore | str | Path | None) -> Path:
    """The folder that a name in a store on this machine, or an address alone, stands for."""
    from wanstore.stores.local import LocalStore

    if store is None:
        store = _store_of_names(str(address))
    root = _as_store(address if store is None else store)
    if not isinstance(root, LocalStore):
        raise NotSupportedError("Only a folder on this machine can be loaded without a manifest", "Name a folder")
    return root.root if store is None else root.root / str(address)
