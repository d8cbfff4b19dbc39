"""What this machine can do for video generation."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wanstore._error_translation import first_line
from wanstore._files import free_bytes
from wanstore._installed import versions
from wanstore.benchmarking.measure._ceilings import Ceilings, measure_ceilings
from wanstore.building._dtypes import check_dtypes
from wanstore.choices import CompileMode
from wanstore.errors import AccessError
from wanstore.loading._load import load_folder as load_pipeline
from wanstore.loading._report import LoadReport
from wanstore.memory._estimate import GIB, MemoryEstimate, choose_plan
from wanstore.presets import Preset

_PACKAGES = (
    "wanstore", "torch", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers",
    "huggingface_hub", "xformers", "torchvision", "modal",
)  # fmt: skip
_MAY_BE_BROKEN = ("diffusers", "transformers", "tokenizers", "xformers", "torchvision")
"""xformers and torchvision are built for one version of torch, and diffusers imports them where they are."""
_SAMPLE_BYTES = 256 << 20
_BLOCK_BYTES = 8 << 20


def examine(
    folder: Path, pipeline: Path | None = None, compile: CompileMode = "off", functions: Sequence[Path] = ()
) -> dict[str, Any]:
    """GPU, memory, disk, speeds (measured in `folder`), attention backends, compiler and versions.

    With the folder of a stored pipeline, and with `compile` those of its compiled `functions`, it is loaded, and the
    load compared with those speeds. Raises `AccessError` when nothing can be written to `folder`.
    """
    speeds, ceilings = measure(folder)
    load = {}
    if pipeline:
        report = load_pipeline(pipeline, compile=compile, functions=functions).load_report
        load["load"] = how_close(report, ceilings) | ({"compile": str(report.compiled)} if report.compiled else {})
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "gpu": _gpu(),
        "disk": _disk(folder),
        "speed": speeds,
        **load,
        "attention": _attention(),
        "compiler": _compiler(),
        "versions": versions(_PACKAGES),
        "imports": _imports(),
    }


def _imports() -> dict[str, str] | str:
    """What the libraries that cannot be imported say."""
    broken = {}
    for name in _MAY_BE_BROKEN:
        if importlib.util.find_spec(name):
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot be used
                broken[name] = f"is broken ({first_line(error)}): install the version that fits torch, or uninstall it"
    return broken or "every library can be imported"


def plan_memory(
    folder: Path, preset: Preset, dtype: Mapping[str, str], memory_gib: float | None = None
) -> dict[str, Any] | None:
    """The memory plan that `load(memory="auto")` would choose for the preset's clip, and its predicted peaks.

    For a device with `memory_gib` free, or for this machine's GPU; None if there is none. The pipeline in `folder` is
    not loaded. Raises `DeviceMemoryError` when no plan fits.
    """
    free = _free_bytes() if memory_gib is None else int(memory_gib * GIB)
    if free is None:
        return None
    estimate = MemoryEstimate.of_folder(folder, check_dtypes(dtype))
    plan = choose_plan(estimate, preset.clip, free)
    peaks = {phase: f"{peak / GIB:.2f} GiB" for phase, peak in estimate.peaks(plan, preset.clip).items()}
    return {"preset": preset.name, "free": f"{free / GIB:.1f} GiB", "plan": str(plan), "peaks": peaks}


def _free_bytes() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    from wanstore.memory._schedule import budget_bytes
    from wanstore.transfer._device import pick_device

    return budget_bytes(pick_device(None))


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use: generation runs on the CPU, slowly"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free"


def _disk(folder: Path) -> dict[str, str]:
    free = free_bytes(folder)
    return {"free": "not told by this file system" if free is None else f"{free / 1e9:.1f} GB"}


def measure(folder: Path) -> tuple[dict[str, str], Ceilings | None]:
    """How fast a file of 256 MiB in `folder` is written and read, and a GPU filled; nothing where there is no room."""
    free = free_bytes(folder)
    if free is not None and free < 2 * _SAMPLE_BYTES:
        return {"not measured": "the disk is nearly full"}, None
    try:
        sample = tempfile.NamedTemporaryFile(dir=folder, prefix=".wanstore-doctor-")  # noqa: SIM115
    except OSError as error:
        raise AccessError(
            f"The disk cannot be measured in {folder} ({error.strerror})",
            "Choose a folder that you can write to with --folder",
        ) from error
    with sample as file:
        block = os.urandom(_BLOCK_BYTES)
        began = time.perf_counter()
        for _ in range(_SAMPLE_BYTES // _BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = _SAMPLE_BYTES / (time.perf_counter() - began)
        ceilings = measure_ceilings(Path(file.name))
    rates = {
        "memory to disk": written,
        "disk to memory": ceilings.disk,
        "page cache to memory": ceilings.page_cache,
        "memory to GPU": ceilings.pcie,
    }
    return {name: f"{rate / 1e9:.2f} GB/s" for name, rate in rates.items() if rate}, ceilings


def how_close(report: LoadReport, ceilings: Ceilings | None) -> dict[str, str]:
    """A load, beside what the machine could do at best where that is known."""
    transfer = report.transfer
    assert transfer is not None
    rate = transfer.size_bytes / transfer.seconds
    close = "not known: no speed was measured"
    if ceilings:
        bound, best = ceilings.best_of(transfer, report.device)
        close = f"{rate / best:.0%} ({bound}, {best / 1e9:.2f} GB/s)"
    return {
        "ready after": f"{report.seconds:.2f} s, bound by {report.bound_by}",
        "weights": f"{transfer.size_bytes / 1e9:.2f} GB in {transfer.seconds:.2f} s, {rate / 1e9:.2f} GB/s",
        "of the ceiling": close,
    }


def _compiler() -> dict[str, str]:
    """What compiled blocks need, besides torch."""
    import torch

    needed = ("cc", "gcc", "clang") if torch.cuda.is_available() else ("g++", "clang++")
    found = os.environ.get("CC") or next((path for name in needed if (path := shutil.which(name))), "")
    triton = {"triton": versions(("triton",)).get("triton", "not installed")} if torch.cuda.is_available() else {}
    return {"of C" if torch.cuda.is_available() else "of C++": found or "none: blocks run eagerly", **triton}


def _attention() -> dict[str, str]:
    """Attention backends and whether each can be used; xformers is not imported, since that touches CUDA."""
    import torch

    cuda = torch.cuda.is_available()
    usable = {
        "native": True,
        "flash": cuda and torch.backends.cuda.is_flash_attention_available(),
        "cudnn": cuda and torch.backends.cudnn.is_available(),
        "xformers": cuda and importlib.util.find_spec("xformers") is not None,
    }
    return {name: "yes" if found else "no" for name, found in usable.items()}
