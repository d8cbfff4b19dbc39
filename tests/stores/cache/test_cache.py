"""The cache of remote stores: what is in it, who uses it, what leaves; with real processes, and a real S3 service."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wanstore
from tests.stores.object.s3 import S3, Answer
from tests.unprivileged import can_drop_privileges, run_without_privileges_in
from wanstore.cli import main
from wanstore.errors import DamagedError, DiskFullError, InvalidSettingError, NotFoundError
from wanstore.stores.cache import cached, clear
from wanstore.stores.cache._uses import hold, release
from wanstore.stores.local import LocalStore
from wanstore.stores.object import ObjectStore
from wanstore.testing.stores import contents, put

MB = 1_000_000

USER = """
import sys, wanstore
print(wanstore.open_store(sys.argv[1]).local_path(sys.argv[2]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(s3: S3) -> ObjectStore:
    """Pipelines `a`, `b` and `c` of 1 MB each, in a bucket."""
    store = ObjectStore(f"s3://{s3.bucket}/wan")
    for name in "abc":
        put(store, name, {"weights": os.urandom(MB)})
    return store


def limit(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Let the cache hold so many bytes."""
    monkeypatch.setenv("WANSTORE_CACHE_GIB", str(size / (1 << 30)))


def fetch(store: ObjectStore, name: str) -> Path:
    """Download, and use no more: as a process that has ended."""
    folder = store.local_path(name)
    release(folder)
    return folder


def states() -> dict[str, tuple[str, bool]]:
    """Of what is in the cache, by name: its state, and whether it is in use."""
    return {one.name: (one.state, one.in_use) for one in cached()}


@contextmanager
def used_by_another_process(store: ObjectStore, name: str) -> Iterator[Path]:
    """It has downloaded the pipeline and uses it, until the block ends and it is killed."""
    command = [sys.executable, "-c", USER, store.url, name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


# --- what is in it


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking makes none."""
    monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path / "cache"))
    assert cached() == clear().deleted == () and not (tmp_path / "cache").exists()


def test_it_says_what_is_there_and_who_uses_it(store: ObjectStore) -> None:
    """With the store that it comes from, its size, and when it was last used."""
    fetch(store, "a")
    first = cached()[0].last_used
    with used_by_another_process(store, "b") as folder:
        a, b = cached()
        assert (a.name, a.store, a.state, a.in_use, b.in_use) == ("a", store.url, "whole", False, True)
        assert MB <= a.size_bytes < 1.1 * MB and b.folder == folder.parent and b.last_used > first
    fetch(store, "a")
    assert cached()[0].last_used > b.last_used and not cached()[1].in_use


def test_a_cache_of_an_older_version_is_read(store: ObjectStore) -> None:
    """It has no notes: where a pipeline comes from is not known until it is used again."""
    folder = fetch(store, "a")
    (note,) = folder.parent.parent.glob("*.json")
    for damage in (note.unlink, lambda: note.write_text("{"), lambda: note.write_text('{"store": 1}')):
        damage()
        (found,) = cached()
        assert (found.name, found.store, found.state, found.in_use) == ("a", None, "whole", False)
    assert fetch(store, "a") == folder and cached()[0].store == store.url
    note.unlink()
    assert [one.name for one in clear().deleted] == ["a"] and not folder.exists()


READER = """
import sys
from pathlib import Path
from wanstore.errors import AccessError
from wanstore.interfaces import Quiet
from wanstore.manifest import read_manifest
from wanstore.stores.cache import cached, clear
from wanstore.stores.cache._download import download
folder = Path(sys.argv[1])
manifest = read_manifest(folder)
assert [(one.name, one.state) for one in cached()] == [("w", "whole")]
assert download(lambda path: 1 / 0, "s3://bucket", manifest, folder.parents[2], Quiet()) == folder
try:
    clear()
except AccessError:
    print("refused")
"""


def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    """As one that another user has filled: nobody who may not write there deletes anything there."""
    if not can_drop_privileges() or os.geteuid() != 0:
        pytest.skip("needs another user's folder")
    draft = LocalStore(tmp_path / "draft")
    digest = put(draft, "w").digest
    place = tmp_path / "cache/object/0123/pipelines" / digest
    place.mkdir(parents=True)
    draft.local_path("w").rename(place / "w")
    (tmp_path / "home").mkdir()
    done = run_without_privileges_in(
        tmp_path / "home", [sys.executable, "-c", READER, str(place / "w")], {"WANSTORE_CACHE": str(tmp_path / "cache")}
    )
    assert done.stdout == "refused\n", done.stderr
    assert (place / "w/wanstore.json").exists()


# --- clearing


def test_clearing_deletes_what_nobody_uses(store: ObjectStore, tmp_path: Path) -> None:
    """By name, or all; the store keeps what it holds."""
    for name in "abc":
        fetch(store, name)
    before = shutil.disk_usage(tmp_path).free
    done = clear(["a"])
    assert [one.name for one in done.deleted] == ["a"] and MB < done.freed_bytes < 1.1 * MB
    assert states().keys() == {"b", "c"}
    with used_by_another_process(store, "c") as folder:
        done = clear()
        assert [[one.name for one in group] for group in (done.deleted, done.in_use)] == [["b"], ["c"]]
        assert len(contents(folder)["weights"]) == MB
    assert before and clear().freed_bytes and states() == {}
    assert not list((tmp_path / "cache").rglob("weights")) and store.verify("a").ok


def test_a_name_that_is_not_there_is_told_before_anything_is_deleted(store: ObjectStore) -> None:
    fetch(store, "a")
    with pytest.raises(NotFoundError, match=r"x: not in the cache.*wanstore cache list"):
        clear(["a", "x"])
    assert states() == {"a": ("whole", False)}


def test_what_clearing_was_killed_over_is_deleted_by_the_next(store: ObjectStore, tmp_path: Path) -> None:
    folder = fetch(store, "a").parent
    folder.rename(folder.with_name("trash-1"))
    assert states() == {} and list((tmp_path / "cache").rglob("weights"))
    fetch(store, "b")
    assert len(list((tmp_path / "cache").rglob("weights"))) == 1


def test_an_interrupted_download_stays_to_be_resumed_until_it_is_cleared(s3: S3, store: ObjectStore) -> None:
    """While it is under way it counts with the size that it will have, and is not cleared."""
    seen: list[Any] = []

    def look_then_kill(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if request["REQUEST_METHOD"] == "GET" and request["PATH_INFO"].endswith("/weights"):
            seen.append((cached(), clear()))
            process.send_signal(signal.SIGKILL)
        return None

    s3.fault = look_then_kill
    process = subprocess.Popen([sys.executable, "-c", USER, store.url, "a"], stdin=subprocess.PIPE)
    process.communicate()
    s3.fault = None
    (found,), done = seen[0]
    assert (found.name, found.state, found.in_use, found.store) == ("a", "partial", True, store.url)
    assert found.size_bytes >= MB and not done.deleted
    assert states() == {"a": ("partial", False)}
    assert len(clear().deleted) == 1 and states() == {}


def test_what_is_staged_to_go_up_is_listed_and_goes_when_its_process_is_dead(store: ObjectStore) -> None:
    """Also below a prefix of a Modal Volume, whose stages are deeper."""
    with store.stage("d", resume="key") as stage:
        (stage.path / "weights").write_bytes(bytes(MB))
        assert states() == {"d": ("staged", True)} and not clear().deleted and len(cached()[0].folder.name) == 1
    killed = pytest.raises(ZeroDivisionError)
    deeper = LocalStore(cached_root() / "modal/models/staging/a/prefix")
    for one in (store, deeper):
        with killed, one.stage("d", resume="key") as stage:
            (stage.path / "weights").write_bytes(bytes(MB))
            raise ZeroDivisionError
    assert [(one.state, one.in_use) for one in cached()] == [("staged", False)] * 2
    assert clear(["d"]).freed_bytes >= 2 * MB and states() == {}


def cached_root() -> Path:
    return Path(os.environ["WANSTORE_CACHE"])


# --- the limit


def test_what_was_not_used_for_longest_leaves_before_a_download(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than has to."""
    fetch(store, "a")
    fetch(store, "b")
    fetch(store, "a")
    limit(monkeypatch, 2.5 * MB)
    fetch(store, "c")
    assert states().keys() == {"a", "c"}
    fetch(store, "a")
    assert states().keys() == {"a", "c"}


def test_what_is_in_use_stays(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """If that leaves no room, the download is refused, and nothing leaves in vain."""
    limit(monkeypatch, 2.5 * MB)
    with ExitStack() as stack:
        old = stack.enter_context(used_by_another_process(store, "a"))
        fetch(store, "b")
        fetch(store, "c")
        assert states() == {"a": ("whole", True), "c": ("whole", False)}
        stack.enter_context(used_by_another_process(store, "c"))
        with pytest.raises(
            DiskFullError, match=r"WANSTORE_CACHE_GIB.* of which 0.00 GiB are in use.*wanstore cache list"
        ):
            store.local_path("b")
        assert len(contents(old)["weights"]) == MB
    fetch(store, "b")
    assert len(states()) == 2


def test_a_pipeline_larger_than_the_limit_is_refused(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays, and can be loaded still."""
    folder = fetch(store, "a")
    limit(monkeypatch, MB / 2)
    with pytest.raises(
        DiskFullError, match=r"b has 0.00 GiB, and the cache .* may hold 0.00 GiB \(WANSTORE_CACHE_GIB\)"
    ):
        store.local_path("b")
    assert fetch(store, "a") == folder


@pytest.mark.parametrize("text", ["much", "0", "-3", "nan", "inf", "1e400"])
def test_a_limit_that_is_no_size_is_told(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WANSTORE_CACHE_GIB", text)
    with pytest.raises(InvalidSettingError, match=f"WANSTORE_CACHE_GIB is '{text}'"):
        store.local_path("a")
    monkeypatch.setenv("WANSTORE_CACHE_GIB", "")
    fetch(store, "a")


# --- how long it is in use


def test_a_download_that_failed_is_not_in_use(s3: S3, store: ObjectStore) -> None:
    (key,) = [key for key in s3.sizes() if key.startswith("wan/a/files-") and key.endswith("/weights")]
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(MB))
    with pytest.raises(DamagedError):
        store.local_path("a")
    assert states() == {"a": ("partial", False)}


def test_each_use_ends_by_itself(store: ObjectStore) -> None:
    """Of two in one process, one that ends leaves the other; what is elsewhere is nobody's business."""
    folder = store.local_path("a")
    hold(folder)
    release(folder)
    assert states() == {"a": ("whole", True)}
    release(folder)
    release(folder, Path("/somewhere/else"))
    hold(Path("/somewhere/else"))
    assert states() == {"a": ("whole", False)}


def test_a_process_that_was_forked_off_uses_what_its_parent_used(store: ObjectStore) -> None:
    """As workers of a benchmark do, also when it ends before them."""
    folder = store.local_path("a")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.read(reading, 1)
        os._exit(0)
    release(folder)
    assert states() == {"a": ("whole", True)}
    os.write(writing, b"x")
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert states() == {"a": ("whole", False)}


def test_a_load_uses_it_until_it_returns(s3: S3, tiny_sealed: Path) -> None:
    """On a CPU nothing is read again: no file of the cache stays open."""
    store = ObjectStore(f"s3://{s3.bucket}/wan")
    wanstore.copy(tiny_sealed.name, tiny_sealed.parent, store)
    for weights in ("resident", "deferred"):
        pipe = wanstore.load(tiny_sealed.name, store=store, device="cpu", weights=weights)
        assert states() == {tiny_sealed.name: ("whole", False)}
    wanstore.activate(pipe, "cpu")
    pipe = wanstore.load(tiny_sealed.name, store=store, device="cpu", memory="offload")
    assert states() == {tiny_sealed.name: ("whole", True)}, "the text encoder is read again for each prompt"
    del pipe
    assert states() == {tiny_sealed.name: ("whole", False)}
    with pytest.raises(wanstore.WanstoreError):
        wanstore.load(tiny_sealed.name, store=store, device="cpu", attention="no such backend")  # type: ignore[arg-type]
    assert states() == {tiny_sealed.name: ("whole", False)}


# --- among processes

RACER = """
import hashlib, random, sys
from pathlib import Path
import wanstore
from wanstore.errors import BusyError, DiskFullError
from wanstore.stores.cache import cached, clear
from wanstore.stores.cache._uses import release
url, hashes, role, seed = sys.argv[1], dict(pair.split("=") for pair in sys.argv[2].split(",")), *sys.argv[3:]
random.seed(int(seed))
store, read = wanstore.open_store(url), 0
for _ in range(40):
    if role == "clears":
        clear()
        assert sum(one.size_bytes for one in cached()) < 2_600_000, cached()
        continue
    name = random.choice(list(hashes))
    try:
        folder = store.local_path(name)
    except (BusyError, DiskFullError):  # another one downloads it, or two others are in use
        continue
    for _ in range(20):
        assert hashlib.sha256((folder / "weights").read_bytes()).hexdigest() == hashes[name]
    read += 1
    release(folder)
print(read)
"""


def test_downloads_clearing_and_making_room_at_once(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process uses is whole while it does, and the limit holds at any moment."""
    limit(monkeypatch, 2.5 * MB)
    hashes = ",".join(f"{name}={store.manifest(name).files[0].sha256}" for name in "abc")
    command = [sys.executable, "-c", RACER, store.url, hashes]
    racers = [subprocess.Popen([*command, role, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
              for seed, role in enumerate(["reads", "reads", "reads", "clears"])]  # fmt: skip
    outputs = [racer.communicate() for racer in racers]
    assert not any(racer.returncode for racer in racers), "\n".join(errors for _, errors in outputs)
    assert sum(int(printed) for printed, _ in outputs) > 10
    clear()
    assert states() == {} and not list(cached_root().rglob("weights"))


# --- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["cache", *arguments])


def test_the_command_lists_and_clears(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "0 B in" in run("list").output
    for name in "ab":
        fetch(store, name)
    store.local_path("c")
    limit(monkeypatch, 8 * MB)
    listed = run("list")
    assert store.url in listed.output and "limited to" in listed.output and listed.exit_code == 0
    document = json.loads(run("list", "--json").stdout)
    assert [one["in_use"] for one in document["pipelines"]] == [False, False, True]
    assert document["size_bytes"] == sum(one["size_bytes"] for one in document["pipelines"])
    assert "a: deleted (whole, 1.00 MB)" in run("clear", "a").output
    named = run("clear", "c")
    assert named.exit_code == 1 and "c: stays, it is in use" in named.output
    assert run("clear", "x").exit_code == 1
    done = run("clear", "--json")
    assert done.exit_code == 0 and [one["name"] for one in json.loads(done.stdout)["deleted"]] == ["b"]
