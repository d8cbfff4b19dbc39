"""How a local pipeline folder becomes a ready `WanPipeline`. Importing this is light: torch comes with `load`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanstore.components import COMPONENTS
from wanstore.errors import NotFoundError, NotSupportedError
from wanstore.interfaces import Progress, Quiet
from wanstore.loading.check import check_pipeline, check_sealed, read_json
from wanstore.loading.quiet import quiet_libraries
from wanstore.loading.report import LoadReport, Phase, PhaseClock
from wanstore.loading.weight_files import check_fit, find_weights

if TYPE_CHECKING:
    import torch
    from diffusers import WanPipeline

    from wanstore.loading.weight_files import WeightFile

__all__ = ["LoadReport", "Phase", "load"]


def load(
    folder: Path,
    *,
    device: str | torch.device | None = None,
    verify: bool = False,
    sealed: bool = True,
    progress: Progress | None = None,
) -> WanPipeline:
    """The pipeline in `folder`, ready on `device`: what `from_pretrained(folder, dtype=torch.float16)` gives.

    Weights, buffers, dtypes, configs and ties are the same bit for bit. The tokenizer is not: it encodes as
    tokenizer.json says, where transformers 5's own T5 class rebuilds it and gives other ids for some prompts.
    No file mapping, open file or thread outlives the call. The pipeline has a `load_report`.

    Args:
        folder: a local pipeline folder.
        device: where the pipeline goes; "cuda" where there is one, else "cpu".
        verify: compare every file's SHA-256 with the manifest, not only its size.
        sealed: the folder must have a manifest and match it. Without, any Wan 2.1 pipeline folder will do.
        progress: hears of bytes checked and loaded.

    Raises:
        NotFoundError: there is no such folder, or no manifest in it.
        DamagedError: files are not what the manifest, the configs or their own headers say.
        NotSupportedError: another kind of pipeline, a device that is not there, or `verify` without `sealed`.
    """
    folder, progress, clock = Path(folder), progress or Quiet(), PhaseClock()
    with clock.phase("check"):
        if not folder.is_dir():
            raise NotFoundError(f"There is no folder {folder}", "Check the path")
        if verify and not sealed:
            raise NotSupportedError("Without a manifest there are no hashes to verify", "Leave out one of the two")
        if sealed:
            check_sealed(folder, verify=verify, progress=progress)
        check_pipeline(folder)
        files = {component: find_weights(folder, component) for component in COMPONENTS}
    with clock.phase("imports"):
        for module in ("assemble", "reader", "tokenizer"):  # what needs torch, diffusers and transformers
            import_module(f"wanstore.loading.{module}")
    with clock.phase("device"):
        ready_device = _device(device)
    with quiet_libraries():
        return _build(folder, ready_device, files, progress, clock)


def _device(wanted: str | torch.device | None) -> torch.device:
    import torch

    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise NotSupportedError(
            f"There is no device {wanted} ({reason})", "Use cpu, or a machine that has it"
        ) from error
    return device


def _build(
    folder: Path,
    device: torch.device,
    files: dict[str, tuple[WeightFile, ...]],
    progress: Progress,
    clock: PhaseClock,
) -> WanPipeline:
    import torch

    from wanstore.loading.assemble import assemble
    from wanstore.loading.tokenizer import load_tokenizer

    with clock.phase("skeleton"):
        models = {component: _skeleton(folder, component, files[component]) for component in COMPONENTS}
    size_bytes = sum(file.size_bytes for group in files.values() for file in group)
    with clock.phase("weights", size_bytes):
        task = f"load {folder.name}"
        progress.start(task, size_bytes)
        for component, model in models.items():
            _read_into(folder, component, model, files[component], device, partial(progress.advance, task))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        progress.finish(task)
    with clock.phase("tokenizer"):
        tokenizer = load_tokenizer(folder / "tokenizer")
    with clock.phase("pipeline"):
        pipe: WanPipeline = assemble(folder, models, tokenizer, device)
    pipe.load_report = clock.report(str(folder), str(device))
    return pipe


def _skeleton(folder: Path, component: str, files: tuple[WeightFile, ...]) -> Any:
    """The component's empty model; raises `DamagedError` unless its files hold just what it needs."""
    from wanstore.loading.assemble import build_skeleton, wanted_tensors

    model = build_skeleton(component, read_json(folder / component / "config.json"), str(folder / component))
    check_fit(folder, component, files, wanted_tensors(model))
    return model


def _read_into(
    folder: Path,
    component: str,
    model: Any,
    files: tuple[WeightFile, ...],
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    import torch

    from wanstore.loading.assemble import finish_model, is_wide
    from wanstore.loading.reader import read_tensors

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= read_tensors(file, device, torch.float16, partial(is_wide, component), advance)
    finish_model(component, model, tensors, str(folder / component))
