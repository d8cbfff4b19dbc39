"""The command where torch is not installed: stores can be handled, and the rest says in one line what to install.

`make ranges` runs this where nothing of it is installed. Elsewhere a process gets packages that say that they are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.stores.object.s3 import S3
from wanstore.testing.manifests import seal_as_is

LEFT_OUT = (
    "av", "diffusers", "ftfy", "hf_xet", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch",
    "transformers",
)  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `wanstore` in a process that can import none of what is left out."""
    absent = tmp_path_factory.mktemp("absent")
    for name in LEFT_OUT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')")
    path = os.pathsep.join(filter(None, (str(absent), os.environ.get("PYTHONPATH"))))

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wanstore", *map(str, arguments)]
        settings = {**os.environ, "PYTHONPATH": path, **environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=settings)

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a sealed folder `w`: what handles stores does not look into weights."""
    weights = tmp_path / "store/w/vae/diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(os.urandom(100_000))
    seal_as_is(weights.parents[1])
    return tmp_path / "store"


def told(package: str) -> str:
    """What is said where a package is missing."""
    way = "Install it, or all that wanstore needs: pip install wanstore."
    return f"wanstore: This needs {package}, which is not installed. {way}\n"


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_stored_pipelines_are_listed_shown_verified_and_deleted(run: Run, store: Path) -> None:
    """As tables for people and JSON for programs."""
    for words in (["list"], ["show", "w"], ["verify", "w"], ["report", "w", "--out", store.parent / "page.html"]):
        assert run(*words, "--store", store).returncode == 0, words
        json_of(run(*words, "--store", store, "--json"))
    assert run("delete", "w", "--store", store).returncode == 0
    assert json_of(run("list", "--store", store, "--json"))["pipelines"] == []


def test_a_pipeline_is_copied_to_a_bucket_and_back(run: Run, store: Path, tmp_path: Path) -> None:
    """And is whole there."""
    with S3() as s3:
        bucket = f"s3://{s3.bucket}/wan"
        for source, target in ((store, bucket), (bucket, tmp_path / "back")):
            copied = run("copy", "w", "--from", source, "--to", target, **s3.environment)
            assert copied.returncode == 0, copied.stderr
        assert json_of(run("verify", "w", "--store", bucket, "--json", **s3.environment))["ok"]
    assert json_of(run("verify", "w", "--store", tmp_path / "back", "--json"))["ok"]


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["setup", "OWNER/NAME"], "huggingface_hub"),
        (["setup", "OWNER/NAME", "--dry-run"], "huggingface_hub"),
        (["compile", "w"], "torch"),
        (["bench", "w"], "torch"),
        (["doctor"], "torch"),
        (["demo"], "torch"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_what_needs_more_says_in_one_line_what_to_install(
    run: Run, store: Path, arguments: list[str], needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else."""
    monkeypatch.chdir(store.parent)
    done = run(*arguments, WANSTORE_STORE=str(store))
    assert (done.returncode, done.stderr) == (1, told(needed))


@pytest.mark.skipif(find_spec("torch") is None, reason="the pipeline is made with torch")
def test_generate_says_so_of_a_whole_pipeline(run: Run, tiny_sealed: Path) -> None:
    """It looks at the pipeline before it needs torch."""
    done = run("generate", tiny_sealed.name, "--store", tiny_sealed.parent, "--prompt", "a cat", "--out", "clip.mp4")
    assert (done.returncode, done.stderr) == (1, told("torch"))
