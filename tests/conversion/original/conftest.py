"""Sources in both layouts with the same tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import pytest

from tests.conversion.original.layout import write_original
from wanstore.stores.local import LocalStore
from wanstore.testing.tiny_wan import make_tiny_wan


@attrs.frozen
class Sources:
    """A pipeline folder, and the same in the original layout."""

    diffusers: Path
    original: Path


def _make(folder: Path, dtype: str) -> Sources:
    diffusers = make_tiny_wan(folder / dtype, dtype=dtype, shard_bytes=1 << 40)
    return Sources(diffusers, write_original(diffusers, folder / f"original-{dtype}"))


@pytest.fixture(scope="session")
def sources_fp32(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Every tensor float32, one file a component, so that both layouts give the same files."""
    return _make(tmp_path_factory.mktemp("sources"), "float32")


@pytest.fixture(scope="session")
def sources_bf16(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The same in bfloat16, as the original has its text encoder."""
    return _make(tmp_path_factory.mktemp("sources"), "bfloat16")


@pytest.fixture
def original(sources_fp32: Sources, tmp_path: Path) -> Path:
    """A float32 source in the original layout, of the test's own, to damage."""
    return Path(shutil.copytree(sources_fp32.original, tmp_path / "original"))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")
