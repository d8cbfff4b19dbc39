"""A pipeline is copied whole, as it is, or not at all."""

from __future__ import annotations

import datetime
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

import wanstore
from tests.stores.object.s3 import S3, refuse
from wanstore import _files
from wanstore._files import bytes_below
from wanstore.errors import (
    AccessError,
    AlreadyExistsError,
    ChangedError,
    DamagedError,
    DiskFullError,
    NotFoundError,
    NotSupportedError,
)
from wanstore.manifest import parse_manifest
from wanstore.stores import _copy, _transfers
from wanstore.stores.cache import cached
from wanstore.stores.local import LocalStore
from wanstore.stores.modal import ModalVolumeStore
from wanstore.stores.object import ObjectStore, _bucket
from wanstore.testing.manifests import with_unknown_key
from wanstore.testing.stores import contents, put

LARGE = {"large": os.urandom(17_000_001), "piece": os.urandom(5 << 20), "small": os.urandom(1000), "empty": b""}
FILES = {"a.bin": b"a" * 3_000_000, "folder/b.bin": os.urandom(100), "empty": b""}


class Heard:
    """A `Progress` that adds up what was copied, and may do something when it begins."""

    def __init__(self, at_start: Any = lambda: None) -> None:
        self.messages: list[str] = []
        self.total = self.done = 0
        self._at_start = at_start

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.total = total
        self._at_start()

    def advance(self, task: str, amount: int) -> None:
        self.done += amount

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def source(tmp_path: Path) -> LocalStore:
    """A store with one pipeline, `w`."""
    store = LocalStore(tmp_path / "source")
    put(store, "w", FILES)
    return store


@pytest.fixture
def target(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "target")


def test_the_copy_has_the_same_bytes_and_the_same_digest(source: LocalStore, target: LocalStore) -> None:
    """The manifest included; both are whole, and nothing of the copying is left."""
    heard = Heard()
    manifest = wanstore.copy("w", source, target, progress=heard)
    assert contents(source.local_path("w")) == contents(target.local_path("w"))
    assert target.manifest("w").digest == manifest.digest and target.verify("w").ok
    assert heard.done == heard.total == manifest.size_bytes
    assert not list((target.root / ".wanstore/stages").iterdir())


def test_to_a_modal_volume_and_back(source: LocalStore, target: LocalStore, client: object) -> None:
    """From outside and from a container: the same digest in three stores."""
    volume = ModalVolumeStore("modal://models")
    for there, here in ((source, volume), (volume, target)):
        wanstore.copy("w", there, here)
    assert contents(source.local_path("w")) == contents(target.local_path("w"))
    assert volume.verify("w").ok and volume.manifest("w").digest == target.manifest("w").digest
    heard = Heard()
    wanstore.copy("w", source.root, "modal://models", progress=heard)
    assert "nothing to do" in heard.messages[0]


def test_what_a_later_version_wrote_into_the_manifest_is_kept(source: LocalStore, target: LocalStore) -> None:
    """A copy is no place to lose keys that this version does not know."""
    with source.stage("later") as stage:
        (stage.path / "a").write_bytes(b"a")
        stage.seal(with_unknown_key(put(LocalStore(target.root / "scratch"), "later", {"a": b"a"})))
    wanstore.copy("later", source, target)
    path = target.local_path("later") / "wanstore.json"
    assert path.read_bytes() == (source.local_path("later") / "wanstore.json").read_bytes()
    assert "of_a_later_version" in parse_manifest(path.read_bytes(), "it", "later").document


def test_the_same_pipeline_is_not_copied_again(source: LocalStore, target: LocalStore) -> None:
    """It is said."""
    wanstore.copy("w", source, target)
    heard = Heard()
    wanstore.copy("w", source, target, progress=heard)
    assert heard.total == 0 and "nothing to do" in heard.messages[0]


def test_another_one_of_that_name_stays_unless_it_is_to_be_replaced(source: LocalStore, target: LocalStore) -> None:
    """Then in one step."""
    other = put(target, "w", {"other": b"other"})
    with pytest.raises(AlreadyExistsError):
        wanstore.copy("w", source, target)
    assert target.manifest("w").digest == other.digest
    wanstore.copy("w", source, target, replace=True)
    assert contents(source.local_path("w")) == contents(target.local_path("w"))


def test_a_damaged_copy_is_mended_by_replacing_it(source: LocalStore, target: LocalStore) -> None:
    """Its manifest alone looks whole."""
    wanstore.copy("w", source, target)
    (target.local_path("w") / "a.bin").write_bytes(b"b" * 3_000_000)
    wanstore.copy("w", source, target, replace=True)
    assert target.verify("w").ok


def test_compiled_functions_are_not_copied(compiled_store: Path, target: LocalStore) -> None:
    """They are made where they are to run."""
    (folder,) = compiled_store.glob("w.compiled-*")
    with pytest.raises(wanstore.WanstoreError, match="wanstore compile"):
        wanstore.copy(folder.name, compiled_store, target)


def test_a_pipeline_is_no_store(source: LocalStore) -> None:
    """What is written into its folder would damage it."""
    with pytest.raises(NotSupportedError, match="Name the folder above it"):
        wanstore.copy("w", source, source.local_path("w"))
    assert source.verify("w").ok


@pytest.mark.parametrize("damage", ["altered", "cut", "gone", "a link", "a pipe"])
def test_a_damaged_source_is_not_copied(source: LocalStore, target: LocalStore, damage: str) -> None:
    """With the file that is damaged; the target has nothing of it, and the next copy of a whole one works."""
    path = source.local_path("w") / "a.bin"
    whole = path.read_bytes()
    path.unlink()
    if damage == "altered":
        path.write_bytes(whole[:-1] + b"b")
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "a pipe":
        os.mkfifo(path)
    elif damage == "a link":
        (path.parent.parent / "elsewhere").write_bytes(whole)
        path.symlink_to(path.parent.parent / "elsewhere")
    with pytest.raises(DamagedError, match=r"a\.bin"):
        wanstore.copy("w", source, target)
    assert not target.list().pipelines and not list((target.root / ".wanstore/stages").iterdir())
    path.unlink(missing_ok=True)
    path.write_bytes(whole)
    wanstore.copy("w", source, target)
    assert target.verify("w").ok


def test_a_source_that_is_replaced_meanwhile_is_told_as_such(source: LocalStore, target: LocalStore) -> None:
    """Its files look damaged by the manifest that was read before."""
    with pytest.raises(ChangedError, match="Copy it again"):
        wanstore.copy("w", source, target, progress=Heard(lambda: put(source, "w", {"a.bin": b"new"}, replace=True)))
    assert not target.list().pipelines


def test_what_has_no_room_is_refused_before_anything_is_copied(
    source: LocalStore, target: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both figures."""
    monkeypatch.setattr(_copy, "free_bytes", lambda _: 10)
    heard = Heard()
    with pytest.raises(DiskFullError, match="room for"):
        wanstore.copy("w", source, target, progress=heard)
    assert heard.total == 0


def test_a_store_is_not_copied_into_itself_and_what_is_not_there_is_told(
    source: LocalStore, target: LocalStore
) -> None:
    """Each in one line."""
    with pytest.raises(wanstore.WanstoreError, match="Name two stores"):
        wanstore.copy("w", source, source.root)
    with pytest.raises(NotFoundError, match="no pipeline 'x'"):
        wanstore.copy("x", source, target)


KILLED = """
import sys, wanstore
from wanstore import _files
_files._BLOCK_BYTES = 1 << 16
class Slow:
    def start(self, *_): print("begun", flush=True)
    def advance(self, *_): import time; time.sleep(0.01)
    def finish(self, *_): pass
    def message(self, *_): pass
wanstore.copy("w", sys.argv[1], sys.argv[2], progress=Slow())
"""


def test_a_copy_that_was_killed_is_resumed_by_the_next(source: LocalStore, target: LocalStore) -> None:
    """What was whole is not copied again: a small file is done long before the large one."""
    command = [sys.executable, "-c", KILLED, str(source.root), str(target.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    staged = target.root / ".wanstore/stages/w/pipeline/folder/b.bin"
    deadline = time.monotonic() + 20
    while not staged.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.list().pipelines
    before = staged.stat().st_ino
    wanstore.copy("w", source, target)
    assert (target.local_path("w") / "folder/b.bin").stat().st_ino == before and target.verify("w").ok


# --- from and to stores that are reached over a network


@pytest.fixture
def buckets(s3: S3, monkeypatch: pytest.MonkeyPatch) -> tuple[ObjectStore, ObjectStore]:
    """Two stores of one service: `w` with files larger than a piece is in the first."""
    monkeypatch.setattr(_bucket, "PIECE_BYTES", 5 << 20)
    one, two = ObjectStore(f"s3://{s3.bucket}/one"), ObjectStore(f"s3://{s3.bucket}/two")
    put(one, "w", LARGE)
    return one, two


def below(store: ObjectStore, s3: S3) -> dict[str, int]:
    """The objects of one of the buckets' stores."""
    return {key: size for key, size in s3.sizes().items() if key.startswith(store.url.rpartition("/")[2])}


def test_between_buckets_no_copy_is_kept_on_a_disk(
    buckets: tuple[ObjectStore, ObjectStore], s3: S3, tmp_path: Path
) -> None:
    """At no moment; and it is whole at the other end, with the same manifest."""
    one, two = buckets
    on_disk = []

    def look(request: dict[str, Any], start: Any) -> None:
        on_disk.append(bytes_below(tmp_path / "cache"))

    s3.fault = look
    heard = Heard()
    manifest = wanstore.copy("w", one, two, progress=heard)
    s3.fault = None
    assert len(on_disk) > 10 and max(on_disk) < 10_000
    assert heard.done == manifest.size_bytes and two.manifest("w") == manifest and two.verify("w").ok
    assert contents(two.local_path("w")) == LARGE


def test_to_and_from_a_bucket_goes_straight(
    buckets: tuple[ObjectStore, ObjectStore], source: LocalStore, target: LocalStore, s3: S3, tmp_path: Path
) -> None:
    """Neither is in the cache on its way."""
    one, _ = buckets
    wanstore.copy("w", one, target)
    wanstore.copy("w", source, one, replace=True)
    assert contents(target.local_path("w")) == LARGE and one.verify("w").ok
    assert one.manifest("w").digest == source.manifest("w").digest
    assert bytes_below(tmp_path / "cache") < 10_000 and not cached()


def test_from_a_modal_volume_goes_straight(
    source: LocalStore, target: LocalStore, s3: S3, client: object, tmp_path: Path
) -> None:
    """To a folder and into a bucket; to a Volume it is staged, since the client reads a file twice."""
    volume, bucket = ModalVolumeStore("modal://models"), ObjectStore(f"s3://{s3.bucket}/one")
    wanstore.copy("w", source, volume)
    wanstore.copy("w", volume, target)
    wanstore.copy("w", volume, bucket)
    assert contents(target.local_path("w")) == FILES and target.verify("w").ok and bucket.verify("w").ok
    wanstore.copy("w", bucket, ModalVolumeStore("modal://others"))
    assert ModalVolumeStore("modal://others").verify("w").ok
    assert bytes_below(tmp_path / "cache") < 10_000 and not cached()


@pytest.mark.parametrize("damage", ["altered", "cut", "longer", "gone"])
def test_a_damaged_object_is_not_copied(buckets: tuple[ObjectStore, ObjectStore], s3: S3, damage: str) -> None:
    """Small or large; nothing of it is left at the other end, and a whole one is copied afterwards."""
    one, two = buckets
    for name in ("small", "large"):
        (key,) = [key for key in s3.sizes() if key.endswith(f"/{name}")]
        data = {"altered": bytes(len(LARGE[name])), "cut": LARGE[name][:-1], "longer": LARGE[name] + b"x"}
        if damage == "gone":
            s3.client.delete_object(Bucket=s3.bucket, Key=key)
        else:
            s3.client.put_object(Bucket=s3.bucket, Key=key, Body=data[damage])
        with pytest.raises(DamagedError, match=f"{name} .* s3://{s3.bucket}/one/w"):
            wanstore.copy("w", one, two)
        assert not below(two, s3) and not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=LARGE[name])
    wanstore.copy("w", one, two)
    assert two.verify("w").ok


def test_an_object_store_that_is_replaced_meanwhile_is_told_as_such(
    buckets: tuple[ObjectStore, ObjectStore], s3: S3
) -> None:
    """The folder that was being read is deleted."""
    one, two = buckets
    elsewhere = ObjectStore(one.url)
    with pytest.raises(ChangedError, match="Copy it again"):
        wanstore.copy("w", one, two, progress=Heard(lambda: put(elsewhere, "w", {"new": b"new"}, replace=True)))
    assert not below(two, s3)
    wanstore.copy("w", one, two)
    assert contents(two.local_path("w")) == {"new": b"new"}


def test_a_source_that_fails_is_no_reason_to_send_again(
    buckets: tuple[ObjectStore, ObjectStore], s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tried again where it was read. The next copy takes up what is there."""
    one, two = buckets
    monkeypatch.setattr(_transfers, "RETRY_DELAYS_SECONDS", (0.01,))
    monkeypatch.setattr(_bucket, "_RETRY_TIME", datetime.timedelta(seconds=0.2))
    one, two = ObjectStore(one.url), ObjectStore(two.url)
    asked = []

    def refuse_one(request: dict[str, Any], start: Any) -> Any:
        if request["REQUEST_METHOD"] == "GET" and request["PATH_INFO"].endswith("/large"):
            asked.append(request["PATH_INFO"])
            return refuse(start, "403 Forbidden", "AccessDenied")
        return None

    s3.fault = refuse_one
    with pytest.raises(AccessError, match="one is closed"):
        wanstore.copy("w", one, two)
    assert 0 < len(asked) <= 4, "once for each piece that was under way"
    s3.fault = None
    wanstore.copy("w", one, two)
    assert two.verify("w").ok


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_service_that_refuses_now_and_then_delays_a_copy_and_no_more(
    buckets: tuple[ObjectStore, ObjectStore], s3: S3, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """At either end; what is sent again counts once."""
    one, two = buckets
    monkeypatch.setattr(_transfers, "RETRY_DELAYS_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(_bucket, "_RETRY_TIME", datetime.timedelta(0))  # so that the client itself gives up at once
    one, two = ObjectStore(one.url), ObjectStore(two.url)
    count = itertools.count()

    def hiccup(request: dict[str, Any], start: Any) -> Any:
        at_end = f"/{'one' if end == 'source' else 'two'}/" in request["PATH_INFO"]
        hit = at_end and request["REQUEST_METHOD"] in ("GET", "PUT") and next(count) in (1, 4, 9)
        return refuse(start, "503 Slow Down", "SlowDown") if hit else None

    s3.fault = hiccup
    heard = Heard()
    manifest = wanstore.copy("w", one, two, progress=heard)
    assert heard.done == manifest.size_bytes and two.verify("w").ok


def test_a_copy_between_buckets_that_was_killed_sends_no_file_twice(s3: S3, tmp_path: Path) -> None:
    """Nor reads it again."""
    one, two = ObjectStore(f"s3://{s3.bucket}/one"), ObjectStore(f"s3://{s3.bucket}/two")
    put(one, "w", {f"{n}.bin": bytes([n]) * 100_000 for n in range(12)})
    sent = []

    def kill_in_the_middle(request: dict[str, Any], start: Any) -> None:
        if request["REQUEST_METHOD"] == "PUT":
            sent.append(request["PATH_INFO"])
            if len(sent) == 6:
                process.send_signal(signal.SIGKILL)

    s3.fault = kill_in_the_middle
    command = [sys.executable, "-m", "wanstore", "copy", "w", "--from", one.url, "--to", two.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait() == -signal.SIGKILL
    s3.fault = None
    there = {key.rpartition("/")[2] for key in below(two, s3)}
    assert there and not two.list().pipelines
    s3.requests.clear()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moved = {one.rpartition("/")[2] for one in s3.requests if one.endswith(".bin")}
    assert moved and not moved & there and two.verify("w").ok


def test_an_error_in_one_file_does_not_wait_for_the_others(
    source: LocalStore, target: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C neither: they stop at the next block."""
    monkeypatch.setattr(_files, "_BLOCK_BYTES", 1 << 10)

    class Stops(Heard):
        def advance(self, task: str, amount: int) -> None:
            super().advance(task, amount)
            raise KeyboardInterrupt

    heard = Stops()
    with pytest.raises(KeyboardInterrupt):
        wanstore.copy("w", source, target, progress=heard)
    assert heard.done < heard.total and not target.list().pipelines
    assert attrs.asdict(wanstore.copy("w", source, target))["name"] == "w"
