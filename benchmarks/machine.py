"""What a result was measured on, to be kept with it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch", "diffusers", "transformers", "safetensors", "fastsafetensors", "runai-model-streamer", "instanttensor",
    "flashpack", "xformers",
)  # fmt: skip


def describe() -> dict[str, str]:
    found = {"python": platform.python_version(), "kernel": platform.release(), "cores": str(os.cpu_count())}
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
