"""How a local pipeline folder becomes a ready `WanPipeline`. Importing this is light: torch comes with `load`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wanstore._json import read_json
from wanstore.building._check import check_pipeline, check_sealed
from wanstore.building._dtypes import FLOAT16, check_dtypes
from wanstore.building._weight_files import Weights, check_fit, open_weights
from wanstore.errors import NotFoundError, NotSupportedError
from wanstore.interfaces import Progress, Quiet
from wanstore.lean_imports import collection_paused, deferred_imports, import_lean, quiet_libraries, resolve_imported
from wanstore.loading.memory import Memory, MemoryPlan, check_memory
from wanstore.loading.report import Attention, LoadReport, Phase, PhaseClock
from wanstore.transfer._page_cache import ReadAhead
from wanstore.transfer.record import TransferRecord

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline

    from wanstore.manifest import Manifest

LIBRARIES = (
    "wanstore.building._skeleton",
    "wanstore.building._tokenizer",
    "diffusers.schedulers.scheduling_unipc_multistep",  # Wan 2.1's
)
"""What a load imports, with its own modules that import the libraries at their top."""

__all__ = ["Attention", "LoadReport", "Memory", "MemoryPlan", "Phase", "TransferRecord", "activate", "load"]


def load(
    folder: Path,
    *,
    device: str | torch.device | None = None,
    weights: Literal["resident", "deferred"] = "resident",
    dtype: Mapping[str, str | torch.dtype] | None = None,
    attention: str | None = None,
    memory: Memory = "auto",
    verify: bool = False,
    sealed: bool = True,
    progress: Progress | None = None,
) -> WanPipeline:
    """The pipeline in `folder`, ready on `device`: what `from_pretrained(folder, dtype=torch.float16)` gives.

    Weights, buffers, dtypes, configs and ties are the same bit for bit. The tokenizer is not: it encodes as
    tokenizer.json says, where transformers 5's own T5 class rebuilds it and gives other ids for some prompts.
    No file mapping, open file, thread or socket of its own outlives the call. The pipeline has a `load_report`.

    With `device="cpu"` CUDA is not touched, nor asked whether it is there: a memory snapshot may follow, and
    after it `activate`. With `weights="deferred"` the pipeline is a skeleton without weights until then.

    Args:
        folder: a local pipeline folder.
        device: where the pipeline goes; "cuda" where there is one, else "cpu". None or "cpu" when deferred.
        weights: "resident" reads them now, "deferred" leaves them to `activate`.
        dtype: "float16" or "float32" (or torch's own) by component: `{"vae": "float32"}` widens the VAE's weights
            on the device, as `from_pretrained(dtype={"vae": torch.float32, "default": torch.float16})` does.
            Components are transformer, text_encoder and vae; those not named compute in float16. `activate` keeps it.
        attention: an attention backend of diffusers, such as "xformers", used once the pipeline is on a GPU
            where it works; by default the one that the manifest notes, if any.
        memory: how much of a GPU's memory a clip may take. "auto" chooses for each clip the quickest plan that fits:
            the text encoder, 80 % of the weights, may have to make room while it does not work, and is read again
            from the folder. "streamed" has it do so always; a `MemoryPlan` says in detail what is to happen.
            "resident" keeps all on the device and leaves diffusers' pipeline as it is. No clip changes by it. The
            pipeline has a `memory_plan`, that of the last clip, but not with "resident", nor with "auto" on a CPU.
        verify: compare every file's SHA-256 with the manifest, not only its size.
        sealed: the folder must have a manifest and match it. Without, any Wan 2.1 pipeline folder will do.
        progress: hears of bytes checked and loaded.

    Raises:
        NotFoundError: there is no such folder, or no manifest in it.
        DamagedError: files are not what the manifest, the configs or their own headers say, or not readable.
        ChangedError: another pipeline took the folder's place in mid-load.
        DeviceError: the device has too little memory, or failed.
        NotSupportedError: another kind of pipeline, a device or attention backend that is not there, another
            component or dtype than those above, or arguments that exclude each other.
    """
    folder, progress, clock = Path(folder), progress or Quiet(), PhaseClock()
    with collection_paused(), ExitStack() as stack:
        with clock.phase("check"):
            _check_arguments(device, weights, verify=verify, sealed=sealed)
            dtypes = check_dtypes(dtype)
            check_memory(memory)
            manifest = _check(folder, verify=verify, sealed=sealed, progress=progress)
            files = stack.enter_context(open_weights(folder))
        streamed = None
        with clock.phase("imports"):
            if weights == "resident":
                opened = [file for group in files.values() for file in group]
                with ReadAhead(opened) if "torch" not in sys.modules else nullcontext():
                    from wanstore.building._weight_transfer import transfer_weights
                streamed = stack.enter_context(transfer_weights(files, device, dtypes, progress, folder.name))
            import_lean(LIBRARIES)
            from wanstore.building._attention import check_known
            from wanstore.loading.activation import Origin, fill, make_ready
        stack.enter_context(quiet_libraries())  # now, since diffusers sets its own level when it is imported
        with deferred_imports():  # libraries go on importing while they build
            models = _skeletons(folder, files, dtypes, clock)
            origin = Origin(folder, manifest, attention, dtypes, memory)
            if origin.attention:
                check_known(origin.attention)
            if streamed:  # before the tokenizer, which holds the interpreter's lock for most of a second
                fill(models, origin, streamed, clock)
            pipe = _assemble(folder, models, clock)
    pipe.wanstore_origin = origin
    applied = make_ready(pipe, clock) if streamed else None
    resolve_imported()
    pipe.load_report = clock.report(str(folder), str(pipe.device), applied)
    return pipe


def activate(
    pipe: WanPipeline, device: str | torch.device | None = None, *, progress: Progress | None = None
) -> WanPipeline:
    """The second half of a load, after a memory snapshot was restored: `pipe` itself, ready on `device`.

    Deferred weights are streamed from the folder that the pipeline was prepared from, which must still hold
    the same; weights in memory are moved. Python's, numpy's and torch's random generators get new seeds each
    time, since all clones of a snapshot would draw the same numbers. The attention backend is applied when the
    pipeline has come to a GPU. What is done already is not done again. The pipeline has an
    `activation_report`, and its `load_report` tells of the attention backend.

    Args:
        pipe: what `load` returned.
        device: "cuda" where there is one, else "cpu".
        progress: hears of bytes loaded.

    Raises:
        ChangedError: the folder holds another pipeline than the one that was prepared.
        NotFoundError: it is gone.
        DamagedError, DeviceError: as `load`. The pipeline is as it was: activate it again.
        NotSupportedError: the device is not there, or another loader made the pipeline.
    """
    from wanstore.loading import activation

    with collection_paused(), quiet_libraries():
        activation.activate(pipe, device, progress or Quiet())
        resolve_imported()
    return pipe


def _check_arguments(device: Any, weights: str, *, verify: bool, sealed: bool) -> None:
    if weights not in ("resident", "deferred"):
        raise NotSupportedError(f"Weights can't be {weights!r}", "Choose resident or deferred")
    if weights == "deferred" and str(device or "cpu") != "cpu":
        raise NotSupportedError("Deferred weights are on no device yet", "Name the device to activate")
    if verify and not sealed:
        raise NotSupportedError("Without a manifest there are no hashes to verify", "Leave out one of the two")


def _check(folder: Path, *, verify: bool, sealed: bool, progress: Progress) -> Manifest | None:
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}", "Check the path")
    manifest = check_sealed(folder, verify=verify, progress=progress) if sealed else None
    check_pipeline(folder)
    return manifest


def _skeletons(folder: Path, files: Weights, dtypes: Mapping[str, str], clock: PhaseClock) -> dict[str, Any]:
    """Each component's model without weights; raises `DamagedError` unless `files` hold just what they need."""
    from wanstore.building._skeleton import build_skeleton, check_classes, wanted_tensors

    with clock.phase("skeleton"):
        check_classes()
        models = {}
        for component, group in files.items():
            path = folder / component
            config, dtype = read_json(path / "config.json"), dtypes.get(component, FLOAT16)
            models[component] = build_skeleton(component, config, str(path), dtype)
            check_fit(folder, component, group, wanted_tensors(models[component]))
        return models


def _assemble(folder: Path, models: dict[str, Any], clock: PhaseClock) -> Any:
    from diffusers import WanPipeline

    from wanstore.building._scheduler import load_scheduler
    from wanstore.building._tokenizer import load_tokenizer

    with clock.phase("tokenizer"):
        tokenizer = load_tokenizer(folder / "tokenizer")
    with clock.phase("pipeline"):
        pipe = WanPipeline(tokenizer=tokenizer, scheduler=load_scheduler(folder), **models)
        pipe.register_to_config(_name_or_path=str(folder))
        return pipe
