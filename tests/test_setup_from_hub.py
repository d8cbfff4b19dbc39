"""setup from a Hub, end to end: the real client and command against a Hub on 127.0.0.1."""

from __future__ import annotations

import os
import random
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
from tests.conversion.hub.fetching import Heard, wait_for
from wanstore.api import _setup, storing
from wanstore.cli._terminal import plan_lines
from wanstore.errors import AlreadyExistsError, DiskFullError, SourceError, UnreachableError
from wanstore.interfaces import ConversionPlan, Listing, Quiet
from wanstore.stores.local import LocalStore
from wanstore.testing.hub import Fault, LoopbackHub

REPO = "Wan-AI/Tiny"
LARGEST = "vae/diffusion_pytorch_model.safetensors"
HEADER = "bytes=0-99999"
"""What planning reads of a weight file."""


@pytest.fixture
def hub(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        hub.add_repo(REPO, tiny_fp32)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def command(hub: LoopbackHub, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "wanstore", *arguments]


def environment(hub: LoopbackHub, **more: str) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **more}


def run(hub: LoopbackHub, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(hub, *arguments), env=environment(hub, **more), capture_output=True, text=True, check=False
    )


def test_a_dry_run_says_what_setup_would_do_and_writes_nothing(hub: LoopbackHub, store: LocalStore) -> None:
    """Only headers are fetched: nothing of a file that is longer than a header can be, unless by a range."""
    plan = wanstore.plan_setup(REPO, store, name="w")
    assert not store.root.exists()
    assert (plan.todo, plan.fits) == ("convert", True) and plan.source.location == REPO
    weights = [request for request in hub.requests if request.path.endswith(".safetensors") and request.method == "GET"]
    assert weights and all(request.range for request in weights)
    manifest = wanstore.setup(REPO, store, name="w")
    stored = [entry for entry in manifest.files if entry.path.endswith(".safetensors")]
    assert sum(entry.size_bytes for entry in stored) == plan.stored_bytes < plan.fetched_bytes < plan.peak_bytes * 2
    assert {entry.path for entry in stored} == set(plan.files)
    again = wanstore.plan_setup(REPO, store, name="w")
    assert again.todo == "nothing" and "nothing to do" in plan_lines(again)[0]


def test_a_dry_run_says_whether_it_fits(
    hub: LoopbackHub, store: LocalStore, tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refuses what setup would refuse."""
    monkeypatch.setattr(LocalStore, "free_bytes", lambda _: 10)
    assert "does NOT fit" in plan_lines(wanstore.plan_setup(REPO, store))[-1]
    monkeypatch.setattr(LocalStore, "free_bytes", lambda _: None)
    plan = wanstore.plan_setup(str(tiny_bf16), store)
    assert plan.fits is None and plan.fetched_bytes == 0 and plan_lines(plan)[1] == "downloads nothing"
    wanstore.setup(str(tiny_bf16), store, name="w")
    with pytest.raises(AlreadyExistsError):
        wanstore.plan_setup(REPO, store, name="w")
    assert "would replace" in plan_lines(wanstore.plan_setup(REPO, store, name="w", replace=True))[0]


def test_the_hub_and_a_folder_give_the_same_pipeline(hub: LoopbackHub, tiny_fp32: Path, store: LocalStore) -> None:
    """Equal bytes; the manifest says which commit they came from, though nobody named one."""
    from_hub = wanstore.setup(REPO, store, name="hub")
    from_folder = wanstore.setup(str(tiny_fp32), store, name="folder")
    assert from_hub.files == from_folder.files and store.verify("hub").ok
    assert (from_hub.source.kind, from_hub.source.location) == ("hub", REPO)
    assert len(from_hub.source.commit) == 40 and from_hub.source.revision is None


def test_only_what_a_pipeline_needs_is_fetched(
    hub: LoopbackHub, tiny_copy: Path, store: LocalStore, tmp_path: Path
) -> None:
    """Readmes, pictures and pickles of the repo stay there."""
    (tiny_copy / "README.md").write_text("read me")
    (tiny_copy / "assets").mkdir()
    (tiny_copy / "assets/teaser.mp4").write_bytes(bytes(1000))
    (tiny_copy / "vae/diffusion_pytorch_model.bin").write_bytes(bytes(1000))
    hub.add_repo("Wan-AI/Full", tiny_copy)
    wanstore.setup("Wan-AI/Full", store)
    asked = " ".join(request.path for request in hub.requests)
    assert not any(stray in asked for stray in ("README", "teaser", ".bin"))


def test_a_kept_source_counts_in_the_room_that_setup_needs(
    hub: LoopbackHub, tiny_fp32: Path, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the store's own disk both have to fit; what is kept already needs no more."""
    stored = wanstore.setup(str(tiny_fp32), store, name="folder").size_bytes
    monkeypatch.setattr(_setup, "free_bytes", lambda _: stored + 1_000_000)
    with pytest.raises(DiskFullError, match="Setup needs"):
        wanstore.setup(REPO, store, keep_source=tmp_path / "kept")
    assert not bodies_of_the_largest(hub)
    shutil.copytree(tiny_fp32, tmp_path / "kept", dirs_exist_ok=True)
    assert wanstore.setup(REPO, store, keep_source=tmp_path / "kept").size_bytes == stored


def bodies_of_the_largest(hub: LoopbackHub) -> list[str | None]:
    """The ranges of the largest weight file that were asked for, but for its header."""
    asked = [request for request in tuple(hub.requests) if request.path.startswith("/cdn/") and LARGEST in request.path]
    return [request.range for request in asked if request.range != HEADER]


@pytest.fixture
def slow_check(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are compared with the models after the largest file was asked for."""

    def check(plan: ConversionPlan) -> None:
        wait_for(lambda: bodies_of_the_largest(hub))
        _setup.check_fits_models(plan)

    monkeypatch.setattr(storing, "check_fits_models", check)


@pytest.mark.usefixtures("slow_check")
def test_the_largest_file_comes_while_the_source_is_checked(hub: LoopbackHub, store: LocalStore) -> None:
    """It is fetched once all the same, after the small files, and before the conversion begins."""
    heard = Heard()
    wanstore.setup(REPO, store, name="w", progress=heard)
    assert store.verify("w").ok and len(bodies_of_the_largest(hub)) == 1
    tasks = list(heard.totals)
    assert tasks.index("tokenizer/tokenizer.json") < tasks.index(LARGEST) < tasks.index("convert")


@pytest.mark.usefixtures("slow_check")
def test_a_refusal_ends_the_download_that_was_begun(hub: LoopbackHub, tiny_copy: Path, store: LocalStore) -> None:
    """At once, even if nothing comes, and nothing of it stays."""
    config = tiny_copy / "vae/config.json"
    config.write_text(config.read_text().replace('"z_dim": 16', '"z_dim": 8'))
    hub.add_repo("Wan-AI/Unfit", tiny_copy)
    hub.faults.append(Fault("silent", f"*{LARGEST}", count=1000, after_bytes=100_000))
    with pytest.raises(SourceError, match="the config asks for"):
        wanstore.setup("Wan-AI/Unfit", store)
    assert store.list() == Listing() and not list((store.root / ".wanstore/stages").iterdir())


def test_an_interruption_of_the_checks_keeps_what_has_arrived(
    hub: LoopbackHub, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a conversion does: the next setup goes on from there, and checks the source beside it too."""

    def interrupt(plan: ConversionPlan) -> None:
        wait_for(lambda: bodies_of_the_largest(hub))
        raise KeyboardInterrupt

    hub.faults.append(Fault("silent", f"*{LARGEST}", count=1000, after_bytes=100_000))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(storing, "check_fits_models", interrupt)
        wanstore.setup(REPO, store, name="w")
    hub.faults.clear()
    hub.requests.clear()
    heard = Heard()
    wanstore.setup(REPO, store, name="w", progress=heard)
    assert store.verify("w").ok and f"{LARGEST}: resuming an earlier run" in heard.messages
    assert len(bodies_of_the_largest(hub)) == 1 and not str(bodies_of_the_largest(hub)[0]).startswith("bytes=0-")


class Watching(Quiet):
    """A progress that looks at the folder of downloads whenever it hears something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most = 0

    def advance(self, task: str, amount: int) -> None:
        held = {path.name.removesuffix(".part").removesuffix(".pieces") for path in self.folder.rglob("*.safetensors*")}
        self.most = max(self.most, len({name for name in held if not name.endswith(".json")}))


def test_the_disk_never_holds_more_than_two_source_shards(hub: LoopbackHub, store: LocalStore) -> None:
    """One that is converted, one that is fetched meanwhile."""
    watching = Watching(store.root / ".wanstore/stages/w/scratch/source")
    wanstore.setup(REPO, store, name="w", progress=watching)
    assert watching.most == 2


def test_the_source_can_be_kept(hub: LoopbackHub, tiny_fp32: Path, store: LocalStore, tmp_path: Path) -> None:
    """With keep_source, the folder holds the files as published, and a later setup needs no network."""
    kept = tmp_path / "kept"
    wanstore.setup(REPO, store, name="w", keep_source=kept)
    for path in kept.rglob("*.safetensors"):
        assert path.read_bytes() == (tiny_fp32 / path.relative_to(kept)).read_bytes()
    assert wanstore.setup(str(kept), store, name="again").files == store.manifest("w").files


def test_a_second_setup_fetches_no_file(hub: LoopbackHub, store: LocalStore) -> None:
    """The commit is looked up, and that is all."""
    wanstore.setup(REPO, store)
    hub.requests.clear()
    wanstore.setup(REPO, store)
    assert not [request for request in hub.requests if "/resolve/" in request.path]


def test_a_moved_branch_is_another_recipe(hub: LoopbackHub, tiny_copy: Path, store: LocalStore) -> None:
    """`main` at a new commit is not mistaken for the pipeline that is stored."""
    first = wanstore.setup(REPO, store)
    hub.add_repo(REPO, tiny_copy)
    second = wanstore.setup(REPO, store, replace=True)
    assert first.source.commit != second.source.commit and store.list().pipelines == (second,)
    assert wanstore.setup(REPO, store, revision=first.source.commit, name="old").files == first.files


def test_a_killed_setup_goes_on_without_fetching_again(tiny_fp32: Path, store: LocalStore, tmp_path: Path) -> None:
    """kill -9 in mid-download: shards that were converted are not asked for a second time."""
    with LoopbackHub(rate_bytes=1_000_000) as hub:
        hub.add_repo(REPO, tiny_fp32)
        arguments = ("setup", REPO, "--store", str(store.root), "--name", "w")
        process = subprocess.Popen(command(hub, *arguments), env=environment(hub), stderr=subprocess.DEVNULL)
        journal = store.root / ".wanstore/stages/w/scratch/journal.jsonl"
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_text().count("\n") > 4):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store.list() == Listing()
    done = [line.split('"path": "')[1].split('"')[0] for line in journal.read_text().splitlines()[1:]]
    with LoopbackHub() as hub:
        hub.add_repo(REPO, tiny_fp32)
        second = run(hub, *arguments)
        assert second.returncode == 0, second.stderr
        assert "already converted" in second.stderr
    assert store.verify("w").ok
    # Planning reads headers again; bodies of converted shards are not asked for.
    bodies = {request.path.split("?")[0] for request in hub.requests if request.range != HEADER}
    assert done
    assert not [name for name in done if any(path.endswith(f"/{name}") for path in bodies)]


def test_an_unreachable_hub_keeps_what_was_done(hub: LoopbackHub, store: LocalStore) -> None:
    """When every retry failed, the error says to run again, and running again goes on."""
    hub.faults.append(Fault("status", pattern="*vae*", count=1000, status=404))
    with pytest.raises(wanstore.WanstoreError) as caught:
        wanstore.setup(REPO, store, name="w")
    assert "\n" not in str(caught.value)
    hub.faults.clear()
    assert wanstore.setup(REPO, store, name="w") == store.manifest("w")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("Wan-AI/Nothing",), "no repo Wan-AI/Nothing"),
        ((REPO, "--revision", "nowhere"), "no revision nowhere"),
        (("Wan-AI/Gated",), "Accept the terms"),
    ],
)
def test_refusals_are_one_clear_line_and_leave_the_store_alone(
    hub: LoopbackHub, tiny_fp32: Path, store: LocalStore, source: tuple[str, ...], message: str
) -> None:
    """Status 1, no traceback, no token in the output, nothing stored."""
    hub.add_repo("Wan-AI/Gated", tiny_fp32, gated=True)
    result = run(hub, "setup", *source, "--store", str(store.root))
    assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert store.list() == Listing() and not list((store.root / ".wanstore/stages").glob("*"))


def test_setup_over_xet(tiny_fp32: Path, store: LocalStore, tmp_path: Path) -> None:
    """With as many streams as are asked for; with --quiet nothing is said."""
    with LoopbackHub(xet=tmp_path / "content") as hub:
        hub.add_repo(REPO, tiny_fp32)
        variables = {"HF_HUB_DISABLE_XET": "0", "HF_HOME": str(tmp_path / "hf")}
        arguments = ("setup", REPO, "--store", str(store.root), "--connections", "3")
        first = run(hub, *arguments, **variables)
        again = run(hub, *arguments, "--quiet", **variables)
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stderr == "Downloading over Xet, 3 streams\n" and again.stderr == ""
    assert any(request.path.startswith("/xorbs/") for request in hub.requests)
    assert store.verify("wan2.1-fp16").ok


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_setup_that_is_killed_twenty_times_ends_right(tiny_fp32: Path, store: LocalStore, tmp_path: Path) -> None:
    """In the midst of downloads. What was whole is not fetched again: at most two files are under way at a time."""
    whole = wanstore.setup(str(tiny_fp32), LocalStore(tmp_path / "other"), name="w")
    sizes = [path.stat().st_size for path in tiny_fp32.rglob("*") if path.is_file()]
    chosen = random.Random(0)
    with LoopbackHub(rate_bytes=1_000_000, xet=tmp_path / "content") as hub:
        hub.add_repo(REPO, tiny_fp32)
        variables = {"HF_HUB_DISABLE_XET": "0", "HF_HOME": str(tmp_path / "hf")}
        arguments = ("setup", REPO, "--store", str(store.root), "--name", "w")
        killed = 0
        for _ in range(20):
            hub.requests.clear()
            process = subprocess.Popen(command(hub, *arguments), env=environment(hub, **variables))
            while process.poll() is None and not any(one.path.startswith("/xorbs/") for one in tuple(hub.requests)):
                time.sleep(0.01)
            time.sleep(chosen.uniform(0, 0.6))
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        hub.rate_bytes = None
        result = run(hub, *arguments, **variables)
    assert result.returncode == 0, result.stderr
    assert killed > 10
    assert store.manifest("w").files == whole.files and store.verify("w").ok
    # And the chunks at the ends of a file, which may hold another's bytes.
    assert hub.sent_bytes <= sum(sizes) + killed * 2 * max(sizes) + len(sizes) * (1 << 18)


def test_no_token_reaches_output_or_disk(hub: LoopbackHub, store: LocalStore, tmp_path: Path) -> None:
    """Also when the Hub refuses it."""
    token = "hf_thisIsASecretToken"
    result = run(hub, "setup", REPO, "--store", str(store.root), HF_TOKEN=token, HF_HOME=str(tmp_path / "hf"))
    assert token not in result.stdout + result.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files or result.returncode
    assert not [path for path in files if token.encode() in path.read_bytes()]


def test_no_network_is_said_at_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port is told with the address, after bounded retries."""
    from wanstore.conversion import hub

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    limits = hub.Limits(attempts=2, backoff_seconds=0.01)
    messages: list[str] = []
    progress = Quiet()
    monkeypatch.setattr(progress, "message", messages.append)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        hub.HubSource(REPO, limits=limits, progress=progress)
    assert len(messages) == 1 and "trying again" in messages[0]
