"""What users call to fill stores, and to know what is in them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wanstore._installed import versions
from wanstore.api._addresses import as_store, place_of
from wanstore.api._setup import (
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
from wanstore.display._progress import shown
from wanstore.errors import NotSupportedError, WanstoreError
from wanstore.interfaces import Converter, Progress, VerifyReport, WeightStore
from wanstore.manifest import Manifest
from wanstore.recipes import model_in, model_of
from wanstore.stores._names import check_name

if TYPE_CHECKING:
    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.loading import LoadReport

_MADE_WITH = ("wanstore", "torch", "safetensors", "huggingface_hub", "numpy")


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
    store = as_store(store)
    converter = make_converter(converter) if isinstance(converter, str) else converter
    with shown(progress, store) as progress:
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
    store = as_store(store)
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

    source, target = as_store(source), as_store(target)
    manifest = source.manifest(check_name(name))
    if is_compiled(manifest):
        raise NotSupportedError(f"{name} holds compiled functions, which are for one GPU", "Use wanstore compile there")
    with shown(progress, source, target) as progress:
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
    place, name = place_of(address, store)
    with shown(progress) as progress:
        return place.verify(name, progress=progress)


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
        address: as for `load`.
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
    from wanstore.stores._folder import tensor_records

    place, name = place_of(address, store)
    manifest = place.manifest(name)
    if is_compiled(manifest):
        raise NotSupportedError(f"{name} holds compiled functions, and no pipeline", "Name the pipeline")
    page = Path(f"{name}-report.html" if out is None else out)
    write_report(manifest, tensor_records(place, manifest), page, load=load_report, benchmarks=benchmarks)
    return page
