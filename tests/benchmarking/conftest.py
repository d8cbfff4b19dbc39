"""A tiny pipeline to measure: loaded in this process, and sealed in a folder for others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wanstore.testing.manifests import seal_as_is

if TYPE_CHECKING:
    from diffusers import WanPipeline


@pytest.fixture(scope="session")
def pipe(tiny_fp16: Path) -> WanPipeline:
    """A ready pipeline on the CPU, which takes eight times as long to decode in float16."""
    import wanstore

    return wanstore.load(tiny_fp16, sealed=False, device="cpu", dtype={"vae": "float32"})


@pytest.fixture(scope="session")
def sealed(tiny_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed folder, which says that its weights are random. Read only."""
    folder = Path(shutil.copytree(tiny_fp16, tmp_path_factory.mktemp("sealed") / "w"))
    seal_as_is(folder, weights="random")
    return folder
