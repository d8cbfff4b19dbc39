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
    report = load_pipeline(pipeline, compile=compile, functions=functions).load_report if pipeline else None
    return {
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "gpu": _gpu(),
        "disk": {"free_bytes": free_bytes(folder)},
        "speed": speeds,
        **({"load": how_close(report, ceilings)} if report else {}),
        "attention": _attention(),
        "compiler": _compiler(),
        "versions": versions(_PACKAGES),
        "broken_imports": _broken_imports(),
    }


def lines(findings: Mapping[str, Any]) -> dict[str, str]:
    """What `examine` found, as people read it: a line for each topic."""
    machine, gpu, speed, compiler = (findings[key] for key in ("machine", "gpu", "speed", "compiler"))
    free = findings["disk"]["free_bytes"]
    rates = [
        f"{name.replace('_', ' ')} {rate / 1e9:.2f} GB/s" for name, rate in speed["bytes_a_second"].items() if rate
    ]
    found = {
        "machine": f"{machine['system']} {machine['architecture']}, {machine['cores']} cores",
        "memory": f"{machine['memory_bytes'] / GIB:.1f} GiB",
        "gpu": "none that torch can use: generation runs on the CPU, slowly",
        "disk": "free not told by this file system" if free is None else f"free {free / 1e9:.1f} GB",
        "speed": f"not measured: {speed['reason']}" if speed["reason"] else ", ".join(rates),
    }
    if gpu["name"]:
        free_gib = gpu["free_bytes"] / GIB
        found["gpu"] = f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.1f} GiB, {free_gib:.1f} free"
    if "load" in findings:
        found["load"] = _load_line(findings["load"])
    triton = f", triton {compiler['triton'] or 'not installed'}" if gpu["name"] else ""
    broken = [
        f"{name} is broken ({why}): install the version that fits torch, or uninstall it"
        for name, why in findings["broken_imports"].items()
    ]
    return found | {
        "attention": ", ".join(f"{name} {'yes' if usable else 'no'}" for name, usable in findings["attention"].items()),
        "compiler": f"of {compiler['language']} {compiler['path'] or 'none: blocks run eagerly'}{triton}",
        "versions": ", ".join(f"{name} {version}" for name, version in findings["versions"].items()),
        "imports": ", ".join(broken) or "every library can be imported",
    }


def _load_line(load: Mapping[str, Any]) -> str:
    rate, best = load["size_bytes"] / load["weights_seconds"], load["ceiling_bytes_a_second"]
    parts = [
        f"ready after {load['seconds']:.2f} s, bound by {load['bound_by']}",
        f"weights {load['size_bytes'] / 1e9:.2f} GB in {load['weights_seconds']:.2f} s, {rate / 1e9:.2f} GB/s",
        f"of the ceiling {rate / best:.0%} ({load['ceiling']}, {best / 1e9:.2f} GB/s)"
        if best
        else "of the ceiling not known: no speed was measured",
        load["compiled"],
    ]
    return ", ".join(part for part in parts if part)


def _broken_imports() -> dict[str, str]:
    """What the libraries that cannot be imported say."""
    broken = {}
    for name in _MAY_BE_BROKEN:
        if importlib.util.find_spec(name):
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot be used
                broken[name] = first_line(error)
    return broken


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
    peaks = dict(estimate.peaks(plan, preset.clip))
    return {"preset": preset.name, "free_bytes": free, "plan": str(plan), "peak_bytes": peaks}


def plan_lines(found: Mapping[str, Any]) -> dict[str, str]:
    """What `plan_memory` found, as people read it."""
    return {
        "preset": found["preset"],
        "free": f"{found['free_bytes'] / GIB:.1f} GiB",
        "plan": found["plan"],
        "peaks": ", ".join(f"{phase} {peak / GIB:.2f} GiB" for phase, peak in found["peak_bytes"].items()),
    }


def _free_bytes() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    from wanstore.memory._schedule import budget_bytes
    from wanstore.transfer._device import pick_device

    return budget_bytes(pick_device(None))


def _gpu() -> dict[str, Any]:
    """All None where torch can use no GPU."""
    import torch

    if not torch.cuda.is_available():
        return dict.fromkeys(("name", "memory_bytes", "free_bytes"))
    free, total = torch.cuda.mem_get_info()
    return {"name": torch.cuda.get_device_name(), "memory_bytes": total, "free_bytes": free}


def measure(folder: Path) -> tuple[dict[str, Any], Ceilings | None]:
    """How fast a file of 256 MiB in `folder` is written and read, and a GPU filled; nothing where there is no room."""
    free = free_bytes(folder)
    if free is not None and free < 2 * _SAMPLE_BYTES:
        return _speeds(reason="the disk is nearly full"), None
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
    return _speeds(written, ceilings.disk, ceilings.page_cache, ceilings.pcie), ceilings


def _speeds(
    to_disk: float = 0, from_disk: float = 0, page_cache: float = 0, to_gpu: float = 0, *, reason: str = ""
) -> dict[str, Any]:
    """Bytes a second, None where it could not be measured; `reason` if nothing was."""
    rates = {
        "memory_to_disk": to_disk, "disk_to_memory": from_disk, "page_cache_to_memory": page_cache,
        "memory_to_GPU": to_gpu,
    }  # fmt: skip
    return {"bytes_a_second": {name: rate or None for name, rate in rates.items()}, "reason": reason}


def how_close(report: LoadReport, ceilings: Ceilings | None) -> dict[str, Any]:
    """A load, beside what the machine could do at best where that is known."""
    transfer = report.transfer
    assert transfer is not None
    bound, best = ceilings.best_of(transfer, report.device) if ceilings else (None, None)
    return {
        "seconds": report.seconds,
        "bound_by": report.bound_by,
        "size_bytes": transfer.size_bytes,
        "weights_seconds": transfer.seconds,
        "ceiling": bound,
        "ceiling_bytes_a_second": best,
        "compiled": str(report.compiled) if report.compiled else None,
    }


def _compiler() -> dict[str, str | None]:
    """What compiled blocks need, besides torch."""
    import torch

    needed = ("cc", "gcc", "clang") if torch.cuda.is_available() else ("g++", "clang++")
    return {
        "language": "C" if torch.cuda.is_available() else "C++",
        "path": os.environ.get("CC") or next((path for name in needed if (path := shutil.which(name))), None),
        "triton": versions(("triton",)).get("triton"),
    }


def _attention() -> dict[str, bool]:
    """Attention backends and whether each can be used; xformers is not imported, since that touches CUDA."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "native": True,
        "flash": cuda and torch.backends.cuda.is_flash_attention_available(),
        "cudnn": cuda and torch.backends.cudnn.is_available(),
        "xformers": cuda and importlib.util.find_spec("xformers") is not None,
    }
