"""The loopback Hub is a Hub to the real client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from wanstore.testing.hub import Fault, LoopbackHub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (folder / "vae" / "weights.safetensors").write_bytes(bytes(range(256)) * 4096)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub(page_entries=2) as hub:
        yield hub


def test_client_downloads_a_snapshot(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """`snapshot_download` gets every byte, through pages of the tree and the redirect of large files."""
    commit = hub.add_repo("Wan-AI/Tiny", folder)
    got = Path(snapshot_download("Wan-AI/Tiny", cache_dir=tmp_path / "cache", endpoint=hub.url))
    assert got.name == commit
    for path in ("model_index.json", "vae/weights.safetensors"):
        assert (got / path).read_bytes() == (folder / path).read_bytes()
    assert any(request.path.startswith("/cdn/") for request in hub.requests)


def test_main_moves_and_old_commits_stay(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """A second `add_repo` moves `main`; the first commit is still served."""
    first = hub.add_repo("Wan-AI/Tiny", folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("new")
    second = hub.add_repo("Wan-AI/Tiny", tmp_path / "other")
    api = HfApi(endpoint=hub.url)
    assert api.model_info("Wan-AI/Tiny").sha == second
    assert api.list_repo_files("Wan-AI/Tiny", revision=first) == ["model_index.json", "vae/weights.safetensors"]


def test_refusals_are_the_clients_own_errors(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """Missing, private and gated repos, revisions and wrong tokens raise what they raise at the real Hub."""
    hub.add_repo("Wan-AI/Tiny", folder)
    hub.add_repo("Wan-AI/Gated", folder, gated=True)
    hub.add_repo("Wan-AI/Private", folder, private=True)
    hub.tokens.add("hf_right")
    api = HfApi(endpoint=hub.url)
    for name in ("Wan-AI/None", "Wan-AI/Private"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(name)
    assert api.model_info("Wan-AI/Private", token="hf_right").private
    with pytest.raises(RevisionNotFoundError):
        api.model_info("Wan-AI/Tiny", revision="v9")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info("Wan-AI/Tiny", token="hf_wrong")
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("Wan-AI/Gated", "model_index.json", cache_dir=tmp_path / "cache", token="hf_right")
    hub.accepted.add("hf_right")
    assert api.hf_hub_download("Wan-AI/Gated", "model_index.json", cache_dir=tmp_path / "cache", token="hf_right")


def test_rate_and_faults(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """`rate_bytes` sets the pace, and a fault is spent by the answer that it breaks."""
    hub.add_repo("Wan-AI/Tiny", folder)
    hub.rate_bytes = 2 << 20
    hub.faults.append(Fault("flip", "/cdn/*", after_bytes=10))
    started = time.monotonic()
    api = HfApi(endpoint=hub.url)
    got = Path(api.hf_hub_download("Wan-AI/Tiny", "vae/weights.safetensors", cache_dir=tmp_path / "cache")).read_bytes()
    assert time.monotonic() - started > 0.4
    right = (folder / "vae/weights.safetensors").read_bytes()
    assert [i for i, (a, b) in enumerate(zip(got, right, strict=True)) if a != b] == [10]
    assert hub.faults[0].count == 0
