"""Tiny pipelines that many tests read, each made once a session. A test that changes one copies it first."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

sys.path.append(str(Path(__file__).parents[1]))  # tests/ is no package that could be installed

# Before torch is imported, here or in a process that a test starts: as many tests run at once as there are cores, and
# their threads would wait for one another. The suite takes twice as long with them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Torch's compiler keeps its C++ below TMPDIR. A container of the loopback Modal has one of its own, and would compile
# it all again.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-{os.getuid()}")


def _make(factory: pytest.TempPathFactory, dtype: str) -> Path:
    from wanstore.testing.tiny_wan import make_tiny_wan

    return make_tiny_wan(factory.mktemp("tiny") / dtype, dtype=dtype)


@pytest.fixture(scope="session")
def tiny_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline folder as the Hub publishes Wan 2.1: every tensor float32."""
    return _make(tmp_path_factory, "float32")


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16."""
    return _make(tmp_path_factory, "bfloat16")


@pytest.fixture(scope="session")
def tiny_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float16, as a store holds it; not sealed."""
    return _make(tmp_path_factory, "float16")


@pytest.fixture
def tiny_copy(tiny_fp16: Path, tmp_path: Path) -> Path:
    """A float16 folder of the test's own, to damage."""
    return Path(shutil.copytree(tiny_fp16, tmp_path / "tiny"))


@pytest.fixture
def tiny_sealed(tiny_copy: Path) -> Path:
    """A sealed float16 folder of the test's own."""
    from wanstore.testing.manifests import seal_as_is

    seal_as_is(tiny_copy)
    return tiny_copy


SMALL: dict[str, Any] = {"width": 32, "height": 32, "frames": 5}
"""The clips that the compiled store has a function for."""


@pytest.fixture(scope="session")
def compiled_store(tiny_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a pipeline `w` and the functions of its blocks, for clips of `SMALL`. Read only.

    It takes a quarter of a minute, so one is made for all the processes that run tests.
    """
    import wanstore
    from wanstore.presets import Preset
    from wanstore.testing.manifests import seal_as_is

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled-store"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            new = root.with_name("compiled-store-in-the-making")
            shutil.rmtree(new, ignore_errors=True)
            seal_as_is(Path(shutil.copytree(tiny_fp16, new / "w")), weights="random")
            report = wanstore.compile_blocks("w", store=new, presets=[Preset("small", **SMALL)], device="cpu")
            assert [one.status for one in report.presets] == ["made"], report
            new.rename(root)
    return root


@pytest.fixture
def compiled_copy(compiled_store: Path, tmp_path: Path) -> Path:
    """A store like it, of the test's own, to change."""
    return Path(shutil.copytree(compiled_store, tmp_path / "compiled"))


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running service that wanstore's authors did not write; the environment points clients at it."""
    from tests.stores.object.s3 import S3

    with S3() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path / "cache"))
        yield service
