"""The steps of `wanstore.setup` before the conversion: the source, the recipe, and what is checked before long work."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs

from wanstore._files import bytes_below, files_below, free_bytes, hash_file
from wanstore._formats._json import digest_of, read_json
from wanstore._installed import make_backend
from wanstore.errors import (
    AlreadyExistsError,
    DamagedError,
    DiskFullError,
    InvalidSettingError,
    NotFoundError,
    NotSupportedError,
    SourceError,
    WanstoreError,
)
from wanstore.interfaces import ConversionPlan, Converter, Progress, Source, Stage, WeightStore
from wanstore.manifest import Manifest, SourceRecord

Todo = Literal["convert", "replace", "nothing"]


@attrs.frozen
class SetupPlan:
    """What a setup would do, and what it takes.

    Attributes:
        name: what the store would call the pipeline.
        todo: `convert`, `replace` what is there, or `nothing`: it is there, by the same recipe.
        source: where the weights come from.
        model: such as T2V-1.3B; "" if it is another.
        fetched_bytes: what would be downloaded; 0 from a folder.
        stored_bytes: the weights as they would be stored.
        peak_bytes: the most disk space in use at once, beside what is stored already.
        free_bytes: room where the store is staged; None if nobody can tell.
        files: the weight files that would be written.
    """

    name: str
    todo: Todo
    source: SourceRecord
    model: str = ""
    fetched_bytes: int = 0
    stored_bytes: int = 0
    peak_bytes: int = 0
    free_bytes: int | None = None
    files: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether there is room; None if nobody can tell."""
        return None if self.free_bytes is None else self.peak_bytes <= self.free_bytes


def open_source(
    source: str,
    revision: str | None = None,
    *,
    keep: Path | None = None,
    connections: int | None = None,
    progress: Progress | None = None,
) -> Source:
    """The folder or Hub repo that `source` names, fixed at one state, in the diffusers layout.

    A folder that exists comes first.
    """
    from wanstore.conversion.original import OriginalSource, is_original

    published = _open_published(source, revision, keep=keep, connections=connections, progress=progress)
    return OriginalSource(published) if is_original(published.files) else published


def _open_published(
    source: str, revision: str | None, *, keep: Path | None, connections: int | None, progress: Progress | None
) -> Source:
    folder = Path(source).expanduser()
    if folder.is_dir() or source.startswith((".", "/", "~")):
        from wanstore.conversion.folder import FolderSource

        if revision is not None:
            raise NotSupportedError("A folder has no revisions", "Leave out --revision, or name a Hub repo")
        return FolderSource(folder)
    if source.count("/") != 1 or "://" in source:
        raise NotFoundError(f"{source!r} is neither a folder nor a Hub repo", "Name a folder, or a repo as OWNER/NAME")
    from wanstore.conversion.hub import HubSource, Limits

    if connections is not None and connections < 1:
        raise InvalidSettingError(f"connections is {connections}", "Use at least 1")
    limits = Limits(connections=connections) if connections else Limits()
    return HubSource(source, revision, keep=keep, limits=limits, progress=progress)


def make_converter(name: str, options: Mapping[str, str] | None = None) -> Converter:
    """The converter that is registered as `name`, made with `options`. Raises `NotSupportedError`."""
    return make_backend(
        Converter,
        "converter",
        name,
        {"fp16": "wanstore.conversion.fp16:Fp16Converter"},
        lambda converter: converter(**(options or {})),
    )


def recipe_of(source: SourceRecord, converter: Converter) -> str:
    """Equal for the same source state, converter, version and options: the result would be the same."""
    return digest_of(
        {
            "source": [source.kind, source.location if source.kind == "hub" else "", source.commit],
            "converter": [converter.name, converter.version, converter.options],
        }
    )


def what_to_do(store: WeightStore, name: str, recipe: str, replace: bool) -> tuple[Todo, Manifest | None]:
    """What setup has to do for `name`; with `nothing`, the manifest that is there by the same recipe."""
    try:
        manifest = store.manifest(name)
    except NotFoundError:
        return "convert", None
    except WanstoreError:
        if replace:  # a damaged manifest is what --replace is for
            return "replace", None
        raise
    if manifest.recipe == recipe:
        return "nothing", manifest
    if replace:
        return "replace", None
    raise AlreadyExistsError(
        f"{name!r} already holds {manifest.source.location} at {manifest.source.commit[:12]}, made by another recipe",
        "Choose another name, or replace it with --replace",
    )


def existing_manifest(store: WeightStore, name: str, recipe: str, replace: bool, progress: Progress) -> Manifest | None:
    """The stored manifest if it is of the same recipe, and whole if `replace`; None if setup has something to do."""
    _, manifest = what_to_do(store, name, recipe, replace)
    if manifest and replace:
        try:
            whole = store.verify(name, progress=progress).ok
        except NotFoundError:  # deleted meanwhile
            return None
        if not whole:
            progress.message(f"{name} is damaged: making it again")
            return None
    return manifest


def check_fits_models(plan: ConversionPlan) -> None:
    """Raise `SourceError` unless the planned tensors are just those that the configs' models have."""
    from wanstore.loading._load import import_libraries

    import_libraries()
    from wanstore.building._skeleton import expected_tensors

    for component, config in plan.configs.items():
        held = {
            t.name: (t.shape, s.source_path, t.dtype) for s in plan.shards if s.component == component for t in s.reads
        }
        try:
            wanted = expected_tensors(component, config, len(held))
        except DamagedError as error:
            raise SourceError(error.what, "Fetch the source again") from error
        for name in sorted(wanted.keys() | held.keys()):
            if name not in held:
                raise SourceError(f"{component}: tensor {name} is missing", "Fetch the source again")
            shape, path, dtype = held[name]
            if name not in wanted:
                raise SourceError(f"{path}: tensor {name} does not belong to the model that its config describes")
            if "F" not in dtype:
                raise SourceError(f"{path}: {name} is {dtype}, where the model wants a floating-point tensor")
            if shape != wanted[name]:
                raise SourceError(f"{path}: {name} is {list(shape)}, the config asks for {list(wanted[name])}")


def check_staged(folder: Path, converter: Converter, tokenizer: Mapping[str, str]) -> None:
    """Raise `DamagedError` unless what the converter wrote can be loaded, and every tensor in it is float16.

    Headers and small files are read, no weights: whatever the converter, nothing is sealed that `load` refuses. A
    `tokenizer` of these files' hashes was built before, which takes a second.
    """
    from wanstore.building._check import check_pipeline
    from wanstore.building._scheduler import load_scheduler
    from wanstore.building._skeleton import expected_tensors
    from wanstore.building._tokenizer import load_tokenizer
    from wanstore.building._weight_files import check_fit, open_weights

    try:
        check_pipeline(folder)
        with open_weights(folder) as weights:
            opened = {file.path for files in weights.values() for file in files}
            for path in files_below(folder):
                if path.endswith(".safetensors") and folder / path not in opened:
                    raise DamagedError(f"{path} belongs to no component")
            for component, files in weights.items():
                config = read_json(folder / component / "config.json")
                if "quantization_config" in config:  # load leaves it out, from_pretrained acts on it
                    raise DamagedError(f"{component}/config.json describes quantized weights")
                held = sum(len(file.tensors) for file in files)
                check_fit(folder, component, files, expected_tensors(component, config, held))
                for file in files:
                    for tensor in file.tensors:
                        if tensor.dtype != "F16":
                            raise DamagedError(f"{file.path}: tensor {tensor.name} is {tensor.dtype}, not F16")
        load_scheduler(folder)
        if _hashes(folder / "tokenizer") != tokenizer:
            load_tokenizer(folder / "tokenizer")
    except (DamagedError, NotFoundError, NotSupportedError) as error:
        raise DamagedError(
            f"The converter {converter.name!r} wrote what cannot be loaded: {_within(folder, error)}",
            "Nothing was sealed: use another converter, or tell its author",
        ) from error


def _hashes(folder: Path) -> dict[str, str]:
    return {path: hash_file(folder / path) for path in files_below(folder)}


def _within(folder: Path | str, error: WanstoreError) -> str:
    """What the error says, paths in `folder` relative to it."""
    return error.what.replace(f"{folder}{os.sep}", "")


def fetch_small_files(plan: ConversionPlan, scratch: Path, progress: Progress) -> dict[str, Path]:
    """The files that are copied unchanged, where the converter will look for them: they are fetched once."""
    return {path: plan.source.fetch(path, scratch / "source", progress) for path in plan.copies}


@contextmanager
def largest_on_its_way(plan: ConversionPlan, stage: Stage, progress: Progress) -> Iterator[ConversionPlan]:
    """The plan, with its largest source file being fetched already: the checks in the block take seconds.

    Small files are fetched before: they would wait until it is there. A conversion that is resumed may be done with the
    file, and gets none ahead.
    """
    from wanstore.conversion._head_start import HeadStart

    if any(stage.path.iterdir()) or not plan.shards:
        yield plan
        return
    largest = max(plan.source_paths, key=lambda path: plan.source.files[path])
    with HeadStart(plan.source, largest, stage.scratch / "source", progress) as source:
        yield attrs.evolve(plan, source=source)


def check_small_files(files: Mapping[str, Path], scratch: Path) -> dict[str, str]:
    """Raise `SourceError` unless scheduler and tokenizer can be built from the source: before long work.

    Returns the hashes of the tokenizer's files.
    """
    from wanstore.building._scheduler import load_scheduler
    from wanstore.building._tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for path, file in files.items():
            copy = Path(folder, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        try:
            load_scheduler(Path(folder))
            load_tokenizer(Path(folder, "tokenizer"))
        except (DamagedError, NotSupportedError) as error:
            raise SourceError(_within(folder, error), "Fetch the source again") from error
        return _hashes(Path(folder, "tokenizer"))


def check_free_space(plan: ConversionPlan, stage: Stage, keep_source: Path | None) -> None:
    """Raise `DiskFullError` before long work if a disk has too little room; one that cannot be asked passes."""
    kept = keep_source if plan.record.kind == "hub" else None
    fetched = plan.record.kind == "hub" and not kept
    needs = {stage.path: (plan.peak_bytes if fetched else plan.stored_bytes) - bytes_below(stage.path, stage.scratch)}
    if kept:
        source_bytes = plan.source_bytes + sum(plan.source.files[path] for path in plan.copies)
        place = next(folder for folder in (kept, *kept.absolute().parents) if folder.exists())
        needs[place] = max(source_bytes - bytes_below(kept), 0)
    disks = {folder: folder.stat().st_dev for folder in needs}
    for folder, disk in disks.items():
        needed = sum(needs[other] for other in needs if disks[other] == disk)
        free = free_bytes(folder)
        if free is not None and free < needed:
            raise DiskFullError(
                f"Setup needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free",
                "Free some space, or name a store on a larger disk",
            )
