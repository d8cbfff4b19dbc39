"""examples/setup_modal.py: the unmodified `modal` command, containers that die, commits that get lost."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline

import wanstore
from tests.examples.account import REPO, ROOT, Account, interrupt, wait_for
from wanstore.stores.modal import ModalVolumeStore
from wanstore.testing.hub import LoopbackHub
from wanstore.testing.manifests import seal_as_is

SETUP = ("run", "examples/setup_modal.py", "--repo", REPO)
NAME = "wan2.1-fp16"
HICCUPS = (
    "VolumeGetOrCreate", "FunctionCreate", "FunctionBindParams", "FunctionMap", "FunctionGetOutputs",
    "FunctionGetInputs", "VolumeReload", "VolumeCommit", "DictGetOrCreate", "DictUpdate", "DictGet",
    "FunctionPutOutputs",
)  # fmt: skip


@pytest.fixture
def slow_hub(account: Account, tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub slow enough for something to happen in mid-setup."""
    with LoopbackHub(rate_bytes=2_000_000) as hub:
        hub.add_repo(REPO, tiny_fp32)
        monkeypatch.setitem(account.control.containers.environment, "HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture(autouse=True)
def no_faults(account: Account) -> Iterator[None]:
    yield
    account.control.faults.clear()


def converted(account: Account, volume: str) -> int:
    """How many shards are whole on the Volume, by what background commits have saved."""
    journal = account.control.volumes.folder(volume) / f".wanstore/stages/{NAME}/scratch/journal.jsonl"
    return journal.read_text().count("\n") - 1 if journal.exists() else 0


def bodies(hub: LoopbackHub) -> list[str]:
    """The weight files whose contents were asked for, over Xet by their hash; planning reads only headers."""
    headers = "bytes=0-99999"
    cdn = [one.path for one in hub.requests if one.path.endswith(".safetensors") and one.range != headers]
    return [path for path in cdn if path.startswith("/cdn/")] + [
        one.path for one in hub.requests if one.path.startswith("/cas/")
    ]


class TestSetup:
    """Without faults."""

    def test_it_leaves_a_pipeline_that_load_and_from_pretrained_open(
        self, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Sealed, read back by a second container, and told with its price. A second run fetches nothing."""
        result = account.modal(*SETUP)
        assert result.returncode == 0, result.stdout
        assert "read back  27 files by a second container: all whole" in result.stdout
        assert "cost       about $0.0" in result.stdout
        assert {container.name for container in account.control.containers.started} == {"set_up", "read_back"}
        manifest = account.store("anime-models").manifest(NAME)
        assert manifest.source.location == REPO and manifest.notes == {"attention": "native"}
        monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path))
        with account.client() as client:
            store = ModalVolumeStore("modal://anime-models", client=client)
            loaded = wanstore.load(NAME, store=store, device="cpu")
            folder = store.local_path(NAME)
        reference = WanPipeline.from_pretrained(folder, dtype=torch.float16)
        paths = [request.path for request in account.hub.requests if request.authorized]
        assert paths and all(path.startswith("/cas/") for path in paths), "by a token of the content store's own"
        for (name, ours), theirs in zip(
            loaded.transformer.state_dict().items(), reference.transformer.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), name

        # Once more, now that the account has a secret: it is used.
        account.hub.requests.clear()
        account.hub.tokens.add("hf_made_up")
        monkeypatch.setitem(account.control.secrets, "huggingface-secret", {"HF_TOKEN": "hf_made_up"})
        result = account.modal(*SETUP)
        assert account.hub.requests and all(request.authorized for request in account.hub.requests)
        assert result.returncode == 0 and "nothing to do" in result.stdout and "all whole" in result.stdout
        assert not [request for request in account.hub.requests if "/resolve/" in request.path]


class TestAttention:
    """Which backend the manifest asks for, by what can be known without a GPU."""

    @pytest.mark.parametrize(("failure", "backend"), [(None, "xformers"), (OSError("libcudart"), "native")])
    def test_xformers_is_asked_for_if_its_extensions_fit(
        self, monkeypatch: pytest.MonkeyPatch, failure: OSError | None, backend: str
    ) -> None:
        """A build for another torch imports, and fails only when it is used."""
        monkeypatch.syspath_prepend(ROOT / "examples")
        library = SimpleNamespace(_cpp_library_load_exception=failure)
        monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(_cpp_lib=library))
        assert import_module("setup_modal").attention_backend() == backend


class TestFaults:
    """Each on a Volume of its own."""

    def test_a_killed_container_is_followed_by_one_that_goes_on(
        self, account: Account, slow_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """kill -9 in mid-setup: what had been committed in the background is not fetched again.

        All the while each kind of call is UNAVAILABLE once, which delays it and no more.
        """
        for call in HICCUPS:
            account.control.faults.fail(call, 1)
        process = account.start(*SETUP, "--volume", "killed")
        dying = account.running("set_up")
        wait_for(lambda: converted(account, "killed") > 3)
        downloads = [path for path in account.control.volumes.folder("killed").rglob("*") if "source" in path.parts]
        assert not downloads, "the container's own disk has them"
        monkeypatch.setitem(account.control.containers.environment, "HF_ENDPOINT", account.hub.url)
        account.hub.requests.clear()
        dying.kill()
        wait_for(lambda: dying not in account.control.containers.alive)
        assert account.stored("killed") == []
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        going_on = re.search(r"Resuming: (\d+) of 16 shards are already converted", output)
        assert going_on, output
        assert int(going_on[1]) > 3 and 0 < len(set(bodies(account.hub))) <= 16 - int(going_on[1])
        assert account.store("killed").verify(NAME).ok
        assert all(account.control.faults.calls[call] > 1 for call in HICCUPS)

    @pytest.mark.slow
    def test_a_slow_volume_costs_time_and_nothing_else(self, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        """Commits in the background take seconds here, so that they overlap with writing and with the last one."""
        monkeypatch.setattr(account.control.volumes.link, "bytes_a_second", 2e7)
        result = account.modal(*SETUP, "--volume", "slow")
        assert result.returncode == 0 and "all whole" in result.stdout, result.stdout
        assert account.store("slow").verify(NAME).ok

    @pytest.mark.slow
    def test_a_lost_commit_is_noticed_and_made_up_for(self, account: Account) -> None:
        """Nothing reaches the Volume though Modal says so: the reading back fails, and the next run repairs it."""
        account.control.faults.lose("VolumeCommit", 10_000)
        result = account.modal(*SETUP, "--volume", "lossy")
        assert result.returncode == 1 and "There is no pipeline" in result.stdout
        assert account.stored("lossy") == [] and "Traceback" not in result.stdout
        account.control.faults.clear()
        assert account.modal(*SETUP, "--volume", "lossy").returncode == 0
        assert account.store("lossy").verify(NAME).ok

    @pytest.mark.slow
    def test_two_at_once_give_one_pipeline(self, account: Account, slow_hub: LoopbackHub) -> None:
        """The second waits for the first and finds its work done."""
        first = account.start(*SETUP, "--volume", "shared")
        wait_for(lambda: account.control.volumes.named("shared") and converted(account, "shared") > 0)
        second = account.start(*SETUP, "--volume", "shared")
        outputs = [process.communicate(timeout=200)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], outputs
        assert "nothing to do" not in outputs[0] and "nothing to do" in outputs[1]
        assert len(account.stored("shared")) == 1 and account.store("shared").verify(NAME).ok

    def test_detached_it_goes_on_without_its_client(self, account: Account) -> None:
        """Ctrl-C ends the client, not the setup; reading back is asked for apart."""
        process = account.start("run", "--detach", *SETUP[1:], "--volume", "detached")
        account.running("set_up")
        interrupt(process)
        assert account.stored("detached") == []
        wait_for(lambda: account.stored("detached"))
        result = account.modal("run", "examples/setup_modal.py", "--verify", "--volume", "detached")
        assert result.returncode == 0 and "detached/wan2.1-fp16: 27 files, all whole" in result.stdout

    @pytest.mark.parametrize(
        ("made", "told"), [(False, "There is no Volume unseen"), (True, "There is no pipeline 'wan2.1-fp16'")]
    )
    def test_verify_without_a_pipeline_is_one_line(self, account: Account, made: bool, told: str) -> None:
        """Status 1, and nothing is made."""
        if made:
            account.control.volumes.create("unseen")
        result = account.modal("run", "examples/setup_modal.py", "--verify", "--volume", "unseen")
        assert result.returncode == 1 and told in " ".join(result.stdout.split()), result.stdout
        assert "Traceback" not in result.stdout and account.stored("unseen") == []

    def test_verify_finds_what_is_damaged(self, account: Account, tiny_fp16: Path) -> None:
        """Status 1, with the way to mend it."""
        folder = account.control.volumes.create("bitten").folder / NAME
        shutil.copytree(tiny_fp16, folder)
        seal_as_is(folder)
        with (folder / "vae/diffusion_pytorch_model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        result = account.modal("run", "examples/setup_modal.py", "--verify", "--volume", "bitten")
        assert result.returncode == 1 and "NOT whole" in result.stdout and "--replace" in result.stdout

    def test_what_cannot_work_is_one_line(self, account: Account) -> None:
        """No retries, no traceback: what is wrong, and status 1."""
        result = account.modal("run", "examples/setup_modal.py", "--repo", "Wan-AI/Nowhere", "--volume", "wrong")
        assert result.returncode == 1 and "Traceback" not in result.stdout
        assert "Wan-AI/Nowhere" in result.stdout.splitlines()[-1], result.stdout
        assert account.stored("wrong") == []
