"""The flows that put stores, conversion, loading and benchmarking together: setup, load, benchmark."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wanstore._files import files_below
from wanstore._json import digest_of
from wanstore._versions import versions
from wanstore.errors import (
    AlreadyExistsError,
    DamagedError,
    DiskFullError,
    NotFoundError,
    NotSupportedError,
    SourceError,
    WanstoreError,
)
from wanstore.interfaces import Converter, Progress, Quiet, Stage, WeightStore
from wanstore.manifest import Manifest, SourceRecord
from wanstore.stores import open_store
from wanstore.stores._names import check_name, split_address

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline

    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.interfaces import ConversionPlan, Source
    from wanstore.loading.memory import Memory
    from wanstore.presets import Preset

DEFAULT_NAME = "wan2.1-fp16"
CONVERTERS = "wanstore.converters"
"""Entry-point group of converters: the name is what `setup(converter=...)` takes, the object makes one."""
_MADE_WITH = ("wanstore", "torch", "safetensors", "huggingface_hub", "numpy")


def setup(
    source: str,
    store: WeightStore | str | Path,
    *,
    name: str = DEFAULT_NAME,
    revision: str | None = None,
    replace: bool = False,
    converter: Converter | str = "fp16",
    keep_source: Path | None = None,
    notes: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Fetch `source` (a Hub repo or a folder), convert it, and seal it in `store` as `name`.

    The same recipe a second time is a no-op; an interrupted run goes on where it stopped. With `replace` another
    recipe's pipeline makes room, and one of the same recipe is verified, and made again if it is damaged. With
    `keep_source` a downloaded source stays in that folder. `notes` go into the manifest for whoever loads it, such
    as `attention`, the backend to use on a GPU; they are no part of the recipe. Raises `AlreadyExistsError` when
    `name` holds another recipe and not `replace`, and the errors of the store, the source and the converter.
    """
    progress = progress or Quiet()
    check_name(name)
    store = _as_store(store)
    converter = make_converter(converter) if isinstance(converter, str) else converter
    published = open_source(source, revision, keep=keep_source, progress=progress)
    recipe = recipe_of(published.record, converter)
    existing = _existing(store, name, recipe, replace, progress)
    if existing:
        whole, kept = ", and whole" if replace else "", ", and no source to keep" if keep_source else ""
        progress.message(f"{name} is already there, made by the same recipe{whole}: nothing to do{kept}")
        store.sweep()
        return existing
    with store.stage(name, replace=replace, resume=recipe) as stage:
        try:
            plan = converter.plan(published)
            _check_fits_models(plan)
            _check_room(plan, stage, keep_source)
            _check_small_files(plan, stage.scratch, progress)
            converted = converter.convert(plan, stage.path, scratch=stage.scratch, progress=progress)
            if keep_source:
                for path in plan.source_indexes:
                    published.fetch(path, keep_source, progress)
        except WanstoreError as error:
            if not error.resumable:  # nothing to go on from: leave the store as it was
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
            notes=dict(notes or {}),
        )
        stage.seal(manifest)
    return manifest


def open_source(
    source: str, revision: str | None = None, *, keep: Path | None = None, progress: Progress | None = None
) -> Source:
    """The folder or Hub repo that `source` names, fixed at one state. A folder that exists comes first."""
    folder = Path(source).expanduser()
    if folder.is_dir() or source.startswith((".", "/", "~")):
        from wanstore.conversion.folder import FolderSource

        if revision is not None:
            raise NotSupportedError("A folder has no revisions", "Leave out --revision, or name a Hub repo")
        return FolderSource(folder)
    if source.count("/") != 1 or "://" in source:
        raise NotFoundError(f"{source!r} is neither a folder nor a Hub repo", "Name a folder, or a repo as OWNER/NAME")
    from wanstore.conversion.hub import HubSource

    return HubSource(source, revision, keep=keep, progress=progress)


def make_converter(name: str) -> Converter:
    """The converter registered as `name` in the entry-point group `wanstore.converters`."""
    if name == "fp16":
        from wanstore.conversion.fp16 import Fp16Converter

        return Fp16Converter()
    for entry in entry_points(group=CONVERTERS, name=name):
        converter: Converter = entry.load()()
        return converter
    raise NotSupportedError(f"There is no converter {name!r}", "Install a package that adds it, or use fp16")


def recipe_of(source: SourceRecord, converter: Converter) -> str:
    """Equal for the same source state, converter, version and options: the result would be the same."""
    return digest_of(
        {
            "source": [source.kind, source.location if source.kind == "hub" else "", source.commit],
            "converter": [converter.name, converter.version, converter.options],
        }
    )


def load(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    device: str | torch.device | None = None,
    weights: Literal["resident", "deferred"] = "resident",
    dtype: Mapping[str, str | torch.dtype] | None = None,
    attention: str | None = None,
    memory: Memory = "auto",
    verify: bool = False,
    sealed: bool = True,
    progress: Progress | None = None,
) -> WanPipeline:
    """A ready float16 `WanPipeline`, bit for bit what `from_pretrained(folder, dtype=torch.float16)` gives.

    `address` is a name in `store`, or alone an address such as `modal://volume/name` or `folder/name`.
    `device` is "cuda" where there is one, else "cpu". `weights="deferred"` leaves them to `wanstore.activate`,
    after a memory snapshot. `dtype={"vae": "float32"}` makes a component compute in float32, whose stored weights
    are float16. `attention` is used on a GPU where it works. `memory` says whether parts may make room for one another
    there: by default those that have to. Sizes are checked against the manifest always, hashes
    with `verify`. `sealed=False` loads a folder without a manifest, whoever wrote it. The phases' seconds and bytes
    are in the pipeline's `load_report`. All of it, errors included: `wanstore.loading.load`.
    """
    from wanstore.loading import load as load_folder

    if sealed:
        if store is None:
            store, address = split_address(str(address))
        folder = _as_store(store).local_path(str(address))
    else:
        folder = _unsealed_folder(address, store)
    return load_folder(
        folder, device=device, weights=weights, dtype=dtype, attention=attention, memory=memory,
        verify=verify, sealed=sealed, progress=progress,
    )  # fmt: skip


def benchmark(
    pipe: WanPipeline, presets: Sequence[Preset | str] | None = None, *, progress: Progress | None = None
) -> BenchmarkReport:
    """Time and peak memory of each preset (default: the four of production) on a ready pipeline."""
    from wanstore.benchmarking.runner import PipelineBenchmarker
    from wanstore.presets import PRESETS, preset_named

    chosen = PRESETS.values() if presets is None else presets
    return PipelineBenchmarker(pipe).run(
        [preset_named(p) if isinstance(p, str) else p for p in chosen], progress=progress
    )


def bench(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    presets: Sequence[Preset] | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> BenchmarkReport:
    """What each preset (default: the four of production) costs on a stored pipeline, each in a fresh process.

    `address` and `store` are as for `load`; `how` are the arguments of `wanstore.benchmarking.processes.
    ProcessBenchmarker`. A preset that fails is a row of the report.
    """
    from wanstore.benchmarking.processes import ProcessBenchmarker
    from wanstore.presets import PRESETS

    if store is None:
        store, address = split_address(str(address))
    folder = _as_store(store).local_path(str(address))
    return ProcessBenchmarker(folder, **how).run(
        list(PRESETS.values()) if presets is None else presets, progress=progress
    )


def _as_store(store: WeightStore | str | Path) -> WeightStore:
    return store if isinstance(store, WeightStore) else open_store(store)


def _unsealed_folder(address: str | Path, store: WeightStore | str | Path | None) -> Path:
    """The folder that a name in a store on this machine, or an address alone, stands for."""
    from wanstore.stores.local import LocalStore

    root = _as_store(address if store is None else store)
    if not isinstance(root, LocalStore):
        raise NotSupportedError("Only a folder of this machine can be loaded without a manifest", "Name a folder")
    return root.root if store is None else root.root / str(address)


def _existing(store: WeightStore, name: str, recipe: str, replace: bool, progress: Progress) -> Manifest | None:
    """The stored manifest if it is of the same recipe; None if setup has something to do."""
    try:
        manifest = store.manifest(name)
    except NotFoundError:
        return None
    except WanstoreError:
        if replace:  # a damaged manifest is what --replace is for
            return None
        raise
    if manifest.recipe == recipe:
        if replace and not store.verify(name, progress=progress).ok:
            progress.message(f"{name} is damaged: it is made again")
            return None
        return manifest
    if replace:
        return None
    raise AlreadyExistsError(
        f"{name!r} already holds {manifest.source.location} at {manifest.source.commit[:12]}, made another way",
        "Choose another name, or replace it with --replace",
    )


def _check_fits_models(plan: ConversionPlan) -> None:
    """Raise `SourceError` unless the planned tensors are just those that the configs' models have."""
    from wanstore.building._skeleton import expected_tensors

    for component, config in plan.configs.items():
        try:
            wanted = expected_tensors(component, config)
        except DamagedError as error:
            raise SourceError(error.what, "Fetch the source again") from error
        held = {t.name: (t.shape, s.source_path) for s in plan.shards if s.component == component for t in s.reads}
        for name in sorted(wanted.keys() | held.keys()):
            if name not in held:
                raise SourceError(f"{component}: tensor {name} is missing", "Fetch the source again")
            shape, path = held[name]
            if name not in wanted:
                raise SourceError(f"{path}: tensor {name} does not belong to the model that its config describes")
            if shape != wanted[name]:
                raise SourceError(f"{path}: {name} is {list(shape)}, the config asks for {list(wanted[name])}")


def _check_small_files(plan: ConversionPlan, scratch: Path, progress: Progress) -> None:
    """Raise `SourceError` unless scheduler and tokenizer can be built from the source: before long work."""
    from wanstore.building._scheduler import load_scheduler
    from wanstore.building._tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for path in plan.copies:
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            # Where the converter will look for it: it is fetched once.
            shutil.copyfile(plan.source.fetch(path, scratch / "source", progress), copy)
        try:
            load_scheduler(Path(folder))
            load_tokenizer(Path(folder, "tokenizer"))
        except (DamagedError, NotSupportedError) as error:
            raise SourceError(error.what.replace(f"{folder}{os.sep}", ""), "Fetch the source again") from error


def _check_room(plan: ConversionPlan, stage: Stage, keep_source: Path | None) -> None:
    """Raise `DiskFullError` before long work if a disk has too little room; 0 free means: can't be asked."""
    kept = keep_source if plan.record.kind == "hub" else None
    fetched = plan.record.kind == "hub" and not kept
    needs = {stage.path: (plan.peak_bytes if fetched else plan.stored_bytes) - _held(stage.path, stage.scratch)}
    if kept:
        source_bytes = plan.source_bytes + sum(plan.source.files[path] for path in plan.copies)
        place = next(folder for folder in (kept, *kept.absolute().parents) if folder.exists())
        needs[place] = max(source_bytes - _held(kept), 0)
    disks = {folder: folder.stat().st_dev for folder in needs}
    for folder, disk in disks.items():
        needed = sum(needs[other] for other in needs if disks[other] == disk)
        free = shutil.disk_usage(folder).free
        if 0 < free < needed:
            raise DiskFullError(
                f"Setup needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free",
                "Free some space, or name a store on a larger disk",
            )


def _held(*folders: Path) -> int:
    """Bytes that an earlier run left there."""
    return sum(status.st_size for folder in folders for status in files_below(folder).values())
