"""A Hub source over the real client, a real socket, and networks that fail in every way we know."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from huggingface_hub import constants

from tests.conversion.hub.fetching import Fetching, Heard, start_process, wait_for
from wanstore.conversion.hub import HubSource, Limits
from wanstore.errors import (
    AccessError,
    DamagedError,
    DiskFullError,
    InvalidNameError,
    NotFoundError,
    SourceError,
    UnreachableError,
    WanstoreError,
)
from wanstore.interfaces import Quiet
from wanstore.testing.hub import Blob, Fault, LoopbackHub

REPO = "Wan-AI/Tiny"
BIG = "transformer/big.safetensors"
SMALL = "model_index.json"
MIB = 1 << 20
LIMITS = Limits(
    attempts=3,
    backoff_seconds=0.01,
    connect_seconds=2,
    stall_seconds=0.4,
    pace_seconds=0.4,
    least_bytes_per_second=50_000,
    api_seconds=0.6,
    connections=3,
    http_piece_bytes=5 * MIB,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repo")
    (folder / "transformer").mkdir()
    (folder / SMALL).write_text('{"_class_name": "WanPipeline"}')
    (folder / "empty.txt").touch()
    (folder / BIG).write_bytes(os.urandom(17 * MIB + 5))
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.add_repo(REPO, folder)
        yield hub


@pytest.fixture
def heard() -> Heard:
    return Heard()


def source(revision: str | None = None, *, keep: Path | None = None, limits: Limits = LIMITS) -> HubSource:
    return HubSource(REPO, revision, keep=keep, limits=limits)


def ranges(hub: LoopbackHub) -> list[tuple[int, int]]:
    """The ranges asked of the storage, as start and stop."""
    asked = [request.range for request in hub.requests if request.path.startswith("/cdn/")]
    pairs = [text.removeprefix("bytes=").split("-") for text in asked if text]
    return sorted((int(first), int(last) + 1) for first, last in pairs)


def test_one_commit_though_main_moves(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """All files come from the commit that `main` was when the source was made."""
    first = hub.repos[REPO].main
    pinned = source()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / SMALL).write_text("newer")
    hub.add_repo(REPO, tmp_path / "newer")
    assert (pinned.record.kind, pinned.record.location, pinned.record.commit) == ("hub", REPO, first)
    assert pinned.files == {SMALL: 30, "empty.txt": 0, BIG: 17 * MIB + 5}
    assert pinned.fetch(SMALL, tmp_path / "into", Quiet()).read_bytes() == (folder / SMALL).read_bytes()
    assert source(first).files == pinned.files
    assert source("main").record.revision == "main"


def test_a_tree_of_many_pages_is_read_whole(hub: LoopbackHub) -> None:
    """The list of files does not end with its first page."""
    hub.page_entries = 1
    assert set(source().files) == {SMALL, "empty.txt", BIG}


def test_a_next_page_on_another_host_is_not_followed_there(hub: LoopbackHub) -> None:
    """The list's links are held to the Hub's own host, since the token goes with them."""
    hub.page_entries = 1
    hub.url = "http://elsewhere.invalid"
    assert set(source().files) == {SMALL, "empty.txt", BIG}


def test_head_reads_the_beginning_only(hub: LoopbackHub, folder: Path) -> None:
    """`head` asks for a range, and a file may be shorter than that."""
    hub_source = source()
    assert hub_source.head(BIG, 100) == (folder / BIG).read_bytes()[:100]
    assert ranges(hub) == [(0, 100)]
    assert hub_source.head(SMALL, 1000) == (folder / SMALL).read_bytes()
    assert hub_source.head("empty.txt", 10) == b""


def test_tail_reads_the_end_only(hub: LoopbackHub, folder: Path) -> None:
    """Likewise, from the end."""
    hub_source, size = source(), (folder / BIG).stat().st_size
    assert hub_source.tail(BIG, 100) == (folder / BIG).read_bytes()[-100:]
    assert ranges(hub) == [(size - 100, size)]
    assert hub_source.tail(SMALL, 1000) == (folder / SMALL).read_bytes()
    assert hub_source.tail("empty.txt", 10) == b""


def test_fetch_comes_in_pieces_and_release_deletes(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard
) -> None:
    """A large file comes over several ranges, is whole, and leaves nothing behind once released."""
    hub_source = source()
    fetched = hub_source.fetch(BIG, tmp_path, heard)
    assert fetched == tmp_path / BIG
    assert fetched.read_bytes() == (folder / BIG).read_bytes()
    assert len(ranges(hub)) == 4
    assert heard.done == heard.totals == {BIG: 17 * MIB + 5}
    assert hub_source.fetch("empty.txt", tmp_path, heard).read_bytes() == b""
    hub_source.release(BIG, fetched)
    assert list(fetched.parent.iterdir()) == []


def test_keep_keeps_and_checks_what_it_kept(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """A kept download is used again without the network, unless its bytes were altered."""
    hub_source = source(keep=tmp_path / "kept")
    fetched = hub_source.fetch(BIG, tmp_path / "into", heard)
    hub_source.release(BIG, fetched)
    assert fetched == tmp_path / "kept" / BIG
    before = len(ranges(hub))
    assert hub_source.fetch(BIG, tmp_path / "into", heard) == fetched
    assert len(ranges(hub)) == before
    with fetched.open("r+b") as file:
        file.write(b"altered")
    hub_source.fetch(BIG, tmp_path / "into", heard)
    assert fetched.read_bytes() == (folder / BIG).read_bytes()
    assert any("damaged" in message for message in heard.messages)


def test_a_killed_download_goes_on(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """After kill -9, what had arrived is not asked for again, and the file is whole."""
    hub.rate_bytes = 8 * MIB
    limits = f"connections=2, http_piece_bytes={8 * MIB}"
    process = start_process(hub, REPO, BIG, tmp_path, limits, xet=False)
    notes = tmp_path / f"{BIG}.pieces"
    deadline = time.monotonic() + 30
    while not (notes.exists() and notes.read_text().count("]") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / BIG).exists()
    with notes.open("a") as file:
        file.write("[99-")  # a note that the kill cut short
    hub.rate_bytes = None
    hub.requests.clear()
    assert source().fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert sum(stop - start for start, stop in ranges(hub)) <= 17 * MIB + 5 - 2 * 4 * MIB
    assert heard.done == heard.totals
    assert list((tmp_path / "transformer").iterdir()) == [tmp_path / BIG]


def test_damaged_leftovers_are_not_trusted(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """A part that was altered, cut or grown between two runs is noticed by its hash."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / f"{BIG}.part").write_bytes(bytes(18 * MIB))
    (tmp_path / f"{BIG}.pieces").write_text(f"[0-{9 * MIB}]\n[0-{99 * MIB}]\n")
    assert source().fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert any("not the Hub's" in message for message in heard.messages)
    assert heard.done == heard.totals


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", "/cdn/*", count=3, after_bytes=MIB),
        Fault("reset", "/cdn/*", count=2, after_bytes=MIB),
        Fault("drop", "/cdn/*", count=2),
        Fault("status", "/cdn/*", count=2, status=503),
        Fault("status", "/cdn/*", status=403),
        Fault("status", "*/resolve/*", count=2, status=503),
        Fault("flip", "/cdn/*", after_bytes=12345),
        Fault("truncate", "/cdn/*", count=2, after_bytes=MIB + 1),
        Fault("shift", "/cdn/*", count=2, after_bytes=1),
        Fault("whole", "/cdn/*", count=2),
        Fault("whole", "/cdn/*", count=99),
        Fault("silent", "/cdn/*", count=2, after_bytes=MIB),
        Fault("trickle", "/cdn/*", count=2, after_bytes=1000),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status if fault.kind == 'status' else fault.count}",
)
def test_a_passing_fault_costs_time_only(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard, fault: Fault
) -> None:
    """Whatever breaks for a while, the file arrives whole, and each new try is told of."""
    hub_source = source()
    hub.faults.append(fault)
    assert hub_source.fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert heard.done == heard.totals
    assert heard.messages
    assert [path.name for path in (tmp_path / "transformer").iterdir()] == ["big.safetensors"]


def test_retry_after_is_honoured(hub: LoopbackHub, tmp_path: Path, heard: Heard) -> None:
    """A Hub that names a time is not asked before; one that names an age is given up on."""
    hub_source = source()
    hub.faults.append(Fault("status", "*/resolve/*", status=429, retry_after=1))
    started = time.monotonic()
    hub_source.fetch(SMALL, tmp_path, heard)
    assert time.monotonic() - started >= 1
    hub.faults.append(Fault("status", "*/resolve/*", status=429, retry_after=9999))
    with pytest.raises(UnreachableError, match="429"):
        hub_source.head(SMALL, 5)


@pytest.mark.parametrize("path", [BIG, SMALL])
def test_bytes_that_stay_wrong_are_refused(hub: LoopbackHub, tmp_path: Path, heard: Heard, path: str) -> None:
    """A byte that is flipped each time ends in an error that names the file; nothing of it stays."""
    hub_source = source()
    hub.faults.append(Fault("flip", f"*/{path}", count=99, after_bytes=7))
    with pytest.raises(DamagedError, match=path):
        hub_source.fetch(path, tmp_path, heard)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


@pytest.mark.parametrize("kind", ["silent", "trickle", "drop", "reset", "truncate", "shift", "status"])
def test_a_lasting_fault_ends_in_time(hub: LoopbackHub, tmp_path: Path, heard: Heard, kind: str) -> None:
    """No fault holds us for longer than our own limits say; what arrived stays for the next run."""
    hub_source = source()
    hub.faults.append(Fault(kind, "/cdn/*", count=999, after_bytes=3000))  # type: ignore[arg-type]
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="Run the same command again"):
        hub_source.fetch(BIG, tmp_path, heard)
    assert time.monotonic() - started < 5
    assert (tmp_path / f"{BIG}.part").exists()
    assert not (tmp_path / BIG).exists()


@pytest.mark.parametrize("pattern", ["/api/models/Wan-AI/Tiny", "*/tree/*"])
@pytest.mark.parametrize("kind", ["silent", "trickle", "status", "reset", "drop"])
def test_the_api_is_retried_and_has_a_deadline(hub: LoopbackHub, kind: str, pattern: str) -> None:
    """Model info and tree survive a passing fault, and a lasting one ends in time."""
    hub.faults.append(Fault(kind, pattern, count=1))  # type: ignore[arg-type]
    assert SMALL in source().files
    hub.faults[0].count = 99
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="could not be fetched"):
        source(limits=attrs.evolve(LIMITS, attempts=2, api_seconds=0.3))
    assert time.monotonic() - started < 3


def test_stop_ends_a_fetch_and_a_new_one_goes_on(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """`stop` makes a fetch in another thread end soon; the source stays usable."""
    hub_source = source()
    hub.rate_bytes = 10 * MIB
    thread = Fetching(hub_source, BIG, tmp_path, heard)
    while thread.is_alive() and sum(heard.done.values()) < 6 * MIB:
        time.sleep(0.01)
    hub_source.stop()
    thread.join(30)
    assert not thread.is_alive() and "stopped" in str(thread.error)
    hub.rate_bytes = None
    hub.requests.clear()
    assert hub_source.fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert sum(stop - start for start, stop in ranges(hub)) <= (folder / BIG).stat().st_size - 5 * MIB


def test_stop_does_not_wait_for_a_silent_server(hub: LoopbackHub, tmp_path: Path, heard: Heard) -> None:
    """Whatever the time limits are."""
    hub_source = source(limits=attrs.evolve(LIMITS, stall_seconds=60, api_seconds=60, pace_seconds=60))
    hub.faults.append(Fault("silent", "/cdn/*", count=999, after_bytes=1000))
    thread = Fetching(hub_source, BIG, tmp_path, heard)
    wait_for(lambda: any("/cdn/" in request.path for request in tuple(hub.requests)))
    time.sleep(0.3)
    began = time.monotonic()
    hub_source.stop()
    thread.join(30)
    assert not thread.is_alive() and time.monotonic() - began < 5
    assert isinstance(thread.error, UnreachableError) and "stopped" in str(thread.error)


def test_a_repo_that_is_not_there(hub: LoopbackHub, folder: Path) -> None:
    """A missing repo, a private one, a missing revision and an impossible name say which they are."""
    hub.add_repo("Wan-AI/Private", folder, private=True)
    for name in ("Wan-AI/None", "Wan-AI/Private"):
        with pytest.raises(NotFoundError, match="private one needs hf auth login"):
            HubSource(name, limits=LIMITS)
    with pytest.raises(NotFoundError, match="no revision v9"):
        source("v9")
    with pytest.raises(InvalidNameError):
        HubSource("../../etc", limits=LIMITS)
    assert len([request for request in hub.requests if "None" in request.path]) == 1


def test_a_file_that_is_not_there(hub: LoopbackHub, tmp_path: Path) -> None:
    """A file outside the tree is a `SourceError` that asks nothing of the Hub."""
    hub_source = source()
    with pytest.raises(SourceError, match=r"no file vae/x\.json"):
        hub_source.fetch("vae/x.json", tmp_path, Quiet())
    with pytest.raises(SourceError):
        hub_source.head("vae/x.json", 5)


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\b"])
def test_a_path_that_would_leave_the_folder_is_refused(hub: LoopbackHub, folder: Path, path: str) -> None:
    """A repo cannot make us write outside of our folder."""
    hub.repos[REPO].commits[hub.repos[REPO].main][path] = Blob(folder / SMALL, 30, "0" * 40, None)
    with pytest.raises(SourceError, match="outside its folder"):
        source()


def test_gated_until_the_terms_are_accepted(hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated repo says where to accept its terms; with an accepted token it is read."""
    hub.add_repo(REPO, folder, gated=True)
    with pytest.raises(AccessError, match=f"Accept the terms at {hub.url}/{REPO}, then log in with hf auth login"):
        source().head(SMALL, 5)
    hub.tokens.add("hf_good")
    hub.accepted.add("hf_good")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert source().head(SMALL, 5) == (folder / SMALL).read_bytes()[:5]


@pytest.mark.parametrize("token", ["hf_sEcReT", "hf_sEcReT\x01x", "hf_sEcReTé"])
def test_a_refused_token_is_not_told(
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str,
) -> None:
    """A token that is wrong, or no token at all, is refused in words that do not hold it."""
    monkeypatch.setenv("HF_TOKEN", token)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(WanstoreError) as caught:
        source()
    assert isinstance(caught.value, AccessError) or "\x01" in token
    assert "sEcReT" not in str(caught.getrepr(style="native")) + repr(caught.value) + caplog.text


def test_the_token_stays_off_the_disk(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token goes to the Hub, and to no file and no record."""
    hub.tokens.add("hf_sEcReT")
    monkeypatch.setenv("HF_TOKEN", "hf_sEcReT")
    hub_source = source()
    hub.faults.append(Fault("silent", "/cdn/*", count=999, after_bytes=3000))
    with pytest.raises(UnreachableError) as caught:
        hub_source.fetch(BIG, tmp_path, Quiet())
    hub_source.fetch(SMALL, tmp_path, Quiet())
    assert all(request.authorized for request in hub.requests)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(b"sEcReT" not in path.read_bytes() for path in files)
    assert "sEcReT" not in repr(hub_source.record) + str(caught.getrepr(style="native"))


def test_no_network(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that is not there is an error that can be resumed from."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(UnreachableError, match="connect error") as caught:
            source()
    assert caught.value.resumable


def test_offline_mode_is_named(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE nothing is asked, and the error says what to unset."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        source()
    assert hub.requests == []


@pytest.mark.parametrize("full", ["data", "notes"])
def test_a_full_disk(
    hub: LoopbackHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """A real full disk is told as such; once there is room, the same fetch goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"{14 * MIB}" if full == "data" else "32m,nr_inodes=4"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    try:
        hub_source = source()
        filler = disk / "filler"
        if full == "notes":
            filler.touch()
        with pytest.raises(DiskFullError, match=BIG):
            hub_source.fetch(BIG, disk, Quiet())
        filler.unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        hub.requests.clear()
        assert hub_source.fetch(BIG, disk, Quiet()).read_bytes() == (folder / BIG).read_bytes()
        if full == "data":
            assert sum(stop - start for start, stop in ranges(hub)) < 17 * MIB
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_seen_by_the_write(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a mount: a quota that is used up."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    hub_source = source()
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(DiskFullError, match="Free some"):
        hub_source.fetch(SMALL, tmp_path, Quiet())


def test_importing_costs_no_client() -> None:
    """The command line starts without the Hub's client."""
    check = (
        "import sys, wanstore.conversion.hub._source, wanstore.testing.hub; sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
