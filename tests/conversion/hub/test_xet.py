"""Files over Xet: the real hf_xet against a content store on 127.0.0.1, and HTTPS where that does not lead on."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from huggingface_hub import constants

from tests.conversion.hub.fetching import Fetching, Heard, start_process, wait_for
from wanstore.conversion.hub import HubSource, Limits
from wanstore.errors import AccessError
from wanstore.interfaces import Quiet
from wanstore.testing.hub import Fault, LoopbackHub

REPO = "Wan-AI/Tiny"
BIG = "transformer/big.safetensors"
MIB = 1 << 20
SIZE = 90 * MIB + 5
LIMITS = Limits(
    attempts=3,
    backoff_seconds=0.01,
    connections=4,
    http_piece_bytes=16 * MIB,
    xet_piece_bytes=2 * MIB,
)
HASTY = attrs.evolve(LIMITS, connect_seconds=2, stall_seconds=1, pace_seconds=0.4, api_seconds=1)
"""Where something is broken: a busy machine may be slow."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two xorbs' worth, of which part is the same twice."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "transformer").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    same = random.Random(1).randbytes(10 * MIB)
    (folder / BIG).write_bytes(random.Random(0).randbytes(SIZE - 20 * MIB) + same + same)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with LoopbackHub(xet=tmp_path_factory.mktemp("content")) as hub:
        hub.add_repo(REPO, folder)
        yield hub


@pytest.fixture
def hub(served: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    served.requests.clear()
    served.sent_bytes = 0
    yield served
    served.faults.clear()
    served.tokens.clear()
    served.rate_bytes, served.xet_seconds = None, 3600


@pytest.fixture
def heard() -> Heard:
    return Heard()


def source(limits: Limits = LIMITS) -> HubSource:
    return HubSource(REPO, limits=limits)


def asked(hub: LoopbackHub, below: str) -> int:
    """How many requests there were below a path."""
    return len([request for request in hub.requests if request.path.startswith(below)])


def test_a_file_comes_over_xet(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """Whole, right, in pieces; nothing of it over the address that HTTPS would take, and nothing is left behind."""
    fetched = source().fetch(BIG, tmp_path, heard)
    assert fetched.read_bytes() == (folder / BIG).read_bytes()
    assert asked(hub, "/xorbs/") and not asked(hub, "/cdn/")
    assert heard.done == heard.totals == {BIG: SIZE}
    assert heard.messages == ["Downloading over Xet, 4 streams"]
    assert list(fetched.parent.iterdir()) == [fetched]


def test_small_files_need_no_content_store(hub: LoopbackHub, tmp_path: Path, heard: Heard) -> None:
    """They are in git itself."""
    source().fetch("model_index.json", tmp_path, heard)
    assert not asked(hub, "/cas/") and not heard.messages


def test_it_is_not_used_where_the_client_would_not(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HF_HUB_DISABLE_XET` is the client's own switch."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert source().fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert not asked(hub, "/xorbs/") and not asked(hub, "/api/models/Wan-AI/Tiny/xet-read-token")
    assert heard.messages == ["Downloading over HTTPS, 4 connections"]


def test_the_older_answers_of_a_content_store_will_do(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """`hf_xet` falls back to them by itself."""
    hub.faults.append(Fault("status", "/cas/v2/*", count=99, status=404))
    assert source().fetch(BIG, tmp_path, Quiet()).read_bytes() == (folder / BIG).read_bytes()
    assert asked(hub, "/cas/v1/") and not asked(hub, "/cdn/")


def test_tokens_and_addresses_expire_and_are_renewed(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """A download may take longer than either is good for."""
    hub.xet_seconds, hub.rate_bytes = 2, 20 * MIB
    assert source().fetch(BIG, tmp_path, Quiet()).read_bytes() == (folder / BIG).read_bytes()
    assert asked(hub, "/api/models/Wan-AI/Tiny/xet-read-token") > 1 and not asked(hub, "/cdn/")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", "/xorbs/*", count=3, after_bytes=MIB),
        Fault("reset", "/xorbs/*", count=2, after_bytes=MIB),
        Fault("status", "/xorbs/*", count=2, status=503),
        Fault("status", "/xorbs/*", count=2, status=403),
        Fault("status", "/cas/*", count=2, status=500),
        Fault("flip", "/xorbs/*", after_bytes=12345),
        Fault("truncate", "/xorbs/*", count=2, after_bytes=MIB + 1),
        Fault("silent", "/xorbs/*", count=2, after_bytes=1000),
        Fault("drop", "*/xet-read-token/*", count=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.pattern.split('/')[1]}",
)
def test_a_passing_fault_costs_time_only(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard, fault: Fault
) -> None:
    """Whatever breaks for a while, the file arrives whole."""
    hub.faults.append(fault)
    assert source(HASTY).fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert heard.done == heard.totals
    assert [path.name for path in (tmp_path / "transformer").iterdir()] == ["big.safetensors"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", "*/xet-read-token/*", count=999, status=404),
        Fault("silent", "*/xet-read-token/*", count=999),
        Fault("status", "/cas/*", count=999, status=403),
        Fault("status", "/cas/*", count=999, status=503),
        Fault("status", "/xorbs/*", count=999, status=403),
        Fault("status", "/xorbs/*", count=999, status=503),
        Fault("flip", "/xorbs/*", count=999, after_bytes=12345),
        Fault("truncate", "/xorbs/*", count=999, after_bytes=1000),
        Fault("silent", "/xorbs/*", count=999, after_bytes=1000),
        Fault("trickle", "/xorbs/*", count=999, after_bytes=1000),
        Fault("silent", "/cas/*", count=999),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.pattern.split('/')[1]}-{fault.status}",
)
def test_what_xet_cannot_bring_comes_over_https(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard, fault: Fault
) -> None:
    """In time, and told with its reason. The next file does not try it again."""
    hub.faults.append(fault)
    hub_source = source(HASTY)
    began = time.monotonic()
    assert hub_source.fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert time.monotonic() - began < 60
    assert "Downloading over HTTPS, 4 connections" in heard.messages[1:]
    assert heard.done == heard.totals and "Signature" not in str(heard.messages)
    hub.requests.clear()
    hub_source.fetch(BIG, tmp_path / "again", Quiet())
    assert not asked(hub, "/xorbs/") and not asked(hub, "/cas/")


def test_a_rate_that_collapses_is_noticed(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """What came so far stays; fewer streams go on, and then HTTPS."""
    hub.rate_bytes = 40 * MIB
    done = threading.Event()

    def slow_down() -> None:
        while heard.done.get(BIG, 0) < 45 * MIB and not done.wait(0.01):
            pass
        hub.rate_bytes = MIB
        while not any("fell" in message for message in heard.messages) and not done.wait(0.01):
            pass
        hub.rate_bytes = None

    threading.Thread(target=slow_down).start()
    try:
        limits = attrs.evolve(LIMITS, pace_seconds=0.4, xet_piece_bytes=MIB // 4)
        assert source(limits).fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    finally:
        done.set()
    assert any("the rate fell from" in message for message in heard.messages), heard.messages
    assert "Downloading over Xet, 2 streams" in heard.messages


def test_stop_ends_a_fetch_and_a_new_one_goes_on(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard) -> None:
    """Soon, also while nothing comes; the source stays usable, and what came stays."""
    hub_source = source()
    hub.rate_bytes = 30 * MIB
    thread = Fetching(hub_source, BIG, tmp_path, heard)
    while thread.is_alive() and sum(heard.done.values()) < 20 * MIB:
        time.sleep(0.01)
    hub.faults.append(Fault("silent", "/xorbs/*", count=999))
    time.sleep(0.5)
    began = time.monotonic()
    hub_source.stop()
    thread.join(30)
    assert not thread.is_alive() and "stopped" in str(thread.error) and time.monotonic() - began < 5
    hub.faults.clear()
    before = heard.done[BIG]
    assert hub_source.fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    assert before >= 20 * MIB and any("resuming" in message for message in heard.messages)


def test_stop_does_not_wait_for_a_token(hub: LoopbackHub, tmp_path: Path, heard: Heard) -> None:
    """Nor does it try another way then."""
    hub_source = source()
    hub.faults.append(Fault("status", "*/xet-read-token/*", count=999, status=503, retry_after=60))
    thread = Fetching(hub_source, BIG, tmp_path, heard)
    wait_for(lambda: asked(hub, "/api/models/Wan-AI/Tiny/xet-read-token"))
    hub_source.stop()
    thread.join(10)
    assert not thread.is_alive() and "stopped" in str(thread.error) and not asked(hub, "/cdn/")


@pytest.mark.parametrize("after", [0.1, 0.35, 0.6])
def test_a_killed_download_goes_on(hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard, after: float) -> None:
    """After kill -9 no more is fetched again than was under way: a piece for each stream."""
    hub.rate_bytes = 40 * MIB
    limits = f"connections=4, xet_piece_bytes={2 * MIB}"
    process = start_process(hub, REPO, BIG, tmp_path, limits, xet=True)
    notes = tmp_path / f"{BIG}.pieces"
    wait_for(lambda: notes.exists() and notes.read_text().count("]") >= after * SIZE / (2 * MIB))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert notes.read_text().count("]") * 2 * MIB >= after * SIZE - 2 * MIB
    hub.rate_bytes = None
    assert source().fetch(BIG, tmp_path, heard).read_bytes() == (folder / BIG).read_bytes()
    # Chunks are fetched whole: of each piece one at either end may come twice, of up to 128 KiB.
    assert hub.sent_bytes <= SIZE + 4 * 2 * MIB + SIZE / (2 * MIB) * 2 * (128 << 10)


@pytest.mark.slow
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "https"])
def test_twenty_kills_cost_no_more_than_what_was_under_way(
    hub: LoopbackHub, folder: Path, tmp_path: Path, xet: bool
) -> None:
    """At random moments, one after the other; the file is right at the end."""
    limits = f"connections=2, xet_piece_bytes={MIB}, http_piece_bytes={MIB}"
    hub.rate_bytes, hub.sent_bytes = 4 * MIB, 0
    chosen = random.Random(xet)
    for _ in range(20):
        hub.requests.clear()
        process = start_process(hub, REPO, BIG, tmp_path, limits, xet=xet)
        wait_for(lambda: any(request.path.startswith(("/xorbs/", "/cdn/")) for request in tuple(hub.requests)))
        time.sleep(chosen.uniform(0, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / BIG).exists()
    hub.rate_bytes = None
    assert start_process(hub, REPO, BIG, tmp_path, limits, xet=xet).wait() == 0
    assert (tmp_path / BIG).read_bytes() == (folder / BIG).read_bytes()
    # Over Xet also the chunks at either end of a piece, which are fetched whole: of up to 128 KiB.
    ends = SIZE / MIB * 2 * (128 << 10) if xet else 0
    assert SIZE <= hub.sent_bytes <= SIZE + 20 * 2 * 1.25 * MIB + ends


def test_the_token_goes_to_the_hub_alone(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content store has tokens of its own. A refused one is told by the Hub, in words that do not hold it."""
    hub.tokens.add("hf_sEcReT")
    monkeypatch.setenv("HF_TOKEN", "hf_sEcReT")
    hub_source = source()
    hub_source.fetch(BIG, tmp_path, heard)
    assert all(request.authorized == (not request.path.startswith("/xorbs/")) for request in hub.requests)
    hub.tokens.clear()
    with pytest.raises(AccessError) as caught:
        hub_source.fetch(BIG, tmp_path / "again", heard)
    assert "sEcReT" not in str(caught.getrepr(style="native")) + "".join(heard.messages)


def test_a_file_begins_while_the_one_before_it_ends(
    hub: LoopbackHub, folder: Path, tmp_path: Path, heard: Heard
) -> None:
    """The next one gets the streams that become free, and none before."""
    hub.rate_bytes = 60 * MIB
    hub_source = source()
    second = Heard()
    threads = [Fetching(hub_source, BIG, tmp_path / "first", heard)]
    wait_for(lambda: heard.done.get(BIG, 0) > 0)
    threads.append(Fetching(hub_source, BIG, tmp_path / "second", second))
    wait_for(lambda: second.done.get(BIG, 0) > 0)
    assert heard.done[BIG] > SIZE - 12 * MIB
    for thread in threads:
        thread.join(30)
    for name in ("first", "second"):
        assert (tmp_path / name / BIG).read_bytes() == (folder / BIG).read_bytes()
