"""What this machine can do for video generation."""

from __future__ import annotations

import importlib.util
import mmap
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from wanstore.flows import versions

_PACKAGES = (
    "wanstore", "torch", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers",
    "huggingface_hub", "xformers", "modal",
)  # fmt: skip
_SAMPLE_BYTES = 256 << 20
_BLOCK_BYTES = 8 << 20


def examine(folder: Path) -> dict[str, Any]:
    """GPU, memory, disk (measured in `folder` with a 256 MiB file), attention backends and versions."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "gpu": _gpu(),
        "disk": _disk(folder),
        "attention": _attention(),
        "versions": versions(_PACKAGES),
    }


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use: generation runs on the CPU, slowly"
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free"


def _disk(folder: Path) -> dict[str, str]:
    usage = shutil.disk_usage(folder)
    found = {"free": f"{usage.free / 1e9:.1f} GB"}
    if usage.free < 2 * _SAMPLE_BYTES:
        return found
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".wanstore-doctor-") as file:
        block = os.urandom(_BLOCK_BYTES)
        began = time.perf_counter()
        for _ in range(_SAMPLE_BYTES // _BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        found["write"] = f"{_SAMPLE_BYTES / (time.perf_counter() - began) / 1e9:.2f} GB/s"
        seconds = _read_uncached(Path(file.name))
        if seconds:
            found["read"] = f"{_SAMPLE_BYTES / seconds / 1e9:.2f} GB/s"
    return found


def _read_uncached(path: Path) -> float | None:
    """Seconds to read a file past the page cache; None where the file system cannot."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return None
    try:
        with mmap.mmap(-1, _BLOCK_BYTES) as buffer:
            began = time.perf_counter()
            while os.readv(descriptor, [buffer]):
                pass
            return time.perf_counter() - began
    except OSError:
        return None
    finally:
        os.close(descriptor)


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
