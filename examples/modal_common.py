"""What the three Modal programs share: their image and their presets.

The versions are pinned because two of them are built for each other: xformers 0.0.35 for torch 2.10 with CUDA 12.8.
A torch of another version loads, and then xformers says that it cannot load its CUDA extensions. The rest are the
versions that wanstore is tested with. torchvision is left out on purpose: nothing here needs it.

Weights come by HTTPS, with wanstore's own resume and hash checks. hf_xet's settings (HF_XET_HIGH_PERFORMANCE) would
change nothing, so they are not set.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import modal

if TYPE_CHECKING:
    from wanstore.presets import Preset

NEEDED = "1.6.0"
"""Of the client: an older one lacks arguments that are used here, and would end in a traceback."""


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


if numbers(modal.__version__) < numbers(NEEDED):
    sys.exit(f"modal {modal.__version__} is too old, {NEEDED} or newer is needed. Run: pip install --upgrade modal")

REPO = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
VOLUME = "anime-models"
NAME = "wan2.1-fp16"

image = (
    modal.Image.debian_slim(python_version="3.12")
    .apt_install("gcc", "libc6-dev")  # what triton needs to run compiled blocks
    .uv_pip_install("torch==2.10.0", "xformers==0.0.35")
    .uv_pip_install(
        "accelerate==1.15.0",
        "attrs==26.1.0",
        "av==18.1.0",
        "cattrs==26.2.1",
        "click==8.5.1",
        "diffusers==0.42.1",
        "filelock==4.2.11",
        "ftfy==6.3.1",
        "hf-xet==1.8.0",
        "huggingface_hub==2.4.0",
        "matplotlib==3.11.2",
        "numpy==2.4.6",
        "nvidia-ml-py==13.615.71",
        "pydantic==2.14.4",
        "rich==15.0.0",
        "safetensors==0.8.0",
        "scikit-image==0.26.0",
        "tokenizers==0.23.3",
        "transformers==5.23.0",
    )
    # This checkout's wanstore, data files and all: by default only *.py would come along.
    .add_local_python_source("wanstore", ignore=["**/__pycache__"])
    .add_local_python_source("modal_common", "clip_request")
)

DEVICE = os.environ.get("WANSTORE_DEVICE", "cuda")
"""Where pipelines run. `cpu` is for tests and for a first look without a GPU: clips are then stamp-sized."""


def preset_to_run(name: str) -> Preset:
    """The preset of that name. Without a GPU it would take days, so there it is cut down to seconds."""
    import attrs

    from wanstore.presets import preset_named

    preset = preset_named(name)
    return preset if DEVICE == "cuda" else attrs.evolve(preset, width=32, height=32, frames=5, steps=1)
