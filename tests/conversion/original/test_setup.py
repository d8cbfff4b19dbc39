"""setup of the original layout from a Hub on 127.0.0.1: the same pipeline, with nothing large before its time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import wanstore
from tests.conversion.hub.fetching import Heard
from tests.conversion.original.conftest import Sources
from tests.conversion.original.layout import T5_FILE, TRANSFORMER_FILE, VAE_FILE, write_original
from wanstore.api import _setup
from wanstore.conversion.original._archive import END_BYTES
from wanstore.errors import DiskFullError, SourceError
from wanstore.interfaces import Listing
from wanstore.stores.local import LocalStore
from wanstore.testing.hub import LoopbackHub
from wanstore.testing.tiny_wan import make_tiny_wan

REPO = "Wan-AI/Original"
WEIGHTS = (T5_FILE, VAE_FILE, TRANSFORMER_FILE)


@pytest.fixture
def hub(sources_fp32: Sources, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        hub.add_repo(REPO, sources_fp32.original)
        yield hub


def test_the_hub_gives_the_same_pipeline_as_a_folder_of_the_other_layout(
    hub: LoopbackHub, sources_fp32: Sources, store: LocalStore
) -> None:
    """In every bit. The manifest says which repo and commit it came from."""
    heard = Heard()
    from_hub = wanstore.setup(REPO, store, name="hub", progress=heard)
    assert from_hub.files == wanstore.setup(str(sources_fp32.diffusers), store, name="folder").files
    assert (from_hub.source.kind, from_hub.source.location) == ("hub", REPO) and store.verify("hub").ok
    for file in WEIGHTS:
        assert heard.done[file] == heard.totals[file] == (sources_fp32.original / file).stat().st_size
    hub.requests.clear()
    wanstore.setup(REPO, store, name="hub")
    assert not [request for request in hub.requests if "/resolve/" in request.path]


def test_a_plan_reads_the_ends_of_files_alone(hub: LoopbackHub, sources_fp32: Sources, tmp_path: Path) -> None:
    """Sizes are those of the published files, and no weights are asked for."""
    large = write_original(make_large(tmp_path), tmp_path / "large")
    hub.add_repo(REPO, large)
    plan = wanstore.plan_setup(REPO, tmp_path / "store")
    sizes = [(large / file).stat().st_size for file in WEIGHTS]
    assert min(sizes) > 2 * END_BYTES and plan.fetched_bytes == sum(sizes)
    assert plan.stored_bytes + sum(sorted(sizes)[-2:]) < plan.peak_bytes < plan.stored_bytes + sum(sizes)
    assert hub.sent_bytes < 5 * END_BYTES


def make_large(folder: Path) -> Path:
    """A pipeline whose every component is larger than what is read of it."""
    from wanstore.testing import tiny_wan

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(tiny_wan.TEXT_ENCODER, "d_ff", 1024)
        return make_tiny_wan(folder / "pipeline", shard_bytes=1 << 40)


def test_only_what_a_pipeline_needs_is_fetched(hub: LoopbackHub, original: Path, store: LocalStore) -> None:
    """Readmes, pictures and other pickles stay there."""
    for stray in ("README.md", "assets/teaser.mp4", "models_clip.pth", "google/umt5-xxl/deep/x.json", "Wan2.1_VAE.bin"):
        (original / stray).parent.mkdir(exist_ok=True)
        (original / stray).write_bytes(bytes(1000))
    hub.add_repo(REPO, original)
    wanstore.setup(REPO, store)
    asked = " ".join(request.path for request in hub.requests)
    assert not any(stray in asked for stray in ("README", "teaser", "clip", "deep", ".bin"))


def test_the_source_can_be_kept(hub: LoopbackHub, sources_fp32: Sources, store: LocalStore, tmp_path: Path) -> None:
    """As published, config and index included: a later setup of it needs no network."""
    published = write_original(sources_fp32.diffusers, tmp_path / "published", transformer_files=2)
    hub.add_repo(REPO, published)
    kept = tmp_path / "kept"
    manifest = wanstore.setup(REPO, store, name="w", keep_source=kept)
    assert {path.relative_to(kept) for path in kept.rglob("*")} == {
        path.relative_to(published) for path in published.rglob("*")
    }
    assert wanstore.setup(str(kept), store, name="again").files == manifest.files


def test_room_is_asked_for_before_anything_is_fetched(
    hub: LoopbackHub, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the output and of the two largest published files."""
    peak = wanstore.plan_setup(REPO, store).peak_bytes
    monkeypatch.setattr(_setup, "free_bytes", lambda _: peak - 1)
    with pytest.raises(DiskFullError, match="Setup needs"):
        wanstore.setup(REPO, store)
    monkeypatch.setattr(_setup, "free_bytes", lambda _: peak)
    assert wanstore.setup(REPO, store).name == "wan2.1-fp16"


def test_a_refusal_leaves_the_store_alone(hub: LoopbackHub, original: Path, store: LocalStore) -> None:
    """And comes before anything large is fetched."""
    shutil.copyfile(original / VAE_FILE, original / T5_FILE)
    hub.add_repo(REPO, original)
    with pytest.raises(SourceError, match=f"{T5_FILE}: tensor .* is none of a Wan 2.1 text_encoder"):
        wanstore.setup(REPO, store)
    assert store.list() == Listing() and not list((store.root / ".wanstore/stages").iterdir())


def test_a_killed_setup_goes_on_without_fetching_again(
    sources_fp32: Sources, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 after each file that was converted: it is not asked for again, and the result is the same."""
    published = write_original(sources_fp32.diffusers, tmp_path / "published", transformer_files=3)
    whole = wanstore.setup(str(published), store, name="whole")
    arguments = [sys.executable, "-m", "wanstore", "setup", REPO, "--store", str(store.root), "--name", "w"]
    journal = store.root / ".wanstore/stages/w/scratch/journal.jsonl"
    with LoopbackHub(rate_bytes=2_000_000) as hub:
        hub.add_repo(REPO, published)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        for converted in range(1, 4):
            process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while not (journal.exists() and journal.read_text().count("\n") > converted):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert [one.name for one in store.list().pipelines] == ["whole"]
        done = [json.loads(line)["shard"]["path"] for line in journal.read_text().splitlines()[1:]]
        hub.rate_bytes = None
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        heard = Heard()
        manifest = wanstore.setup(REPO, store, name="w", progress=heard)
    assert any("already converted" in message for message in heard.messages)
    published_as = {"text_encoder/model.safetensors": T5_FILE, "vae/diffusion_pytorch_model.safetensors": VAE_FILE}
    assert len(done) >= 3
    assert heard.totals.keys().isdisjoint(published_as.get(path, path.removeprefix("transformer/")) for path in done)
    assert manifest.files == whole.files and store.verify("w").ok
