"""A store in a bucket, through the real client and against a real S3 service."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import wanstore
from tests.stores.object.s3 import S3, Answer, refuse
from wanstore.errors import (
    AccessError,
    AlreadyExistsError,
    BusyError,
    ChangedError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
    WanstoreError,
)
from wanstore.interfaces import Listing, WeightStore
from wanstore.stores import _transfers, open_store
from wanstore.stores.local import LocalStore
from wanstore.stores.object import ObjectStore, _bucket, _store, _upload
from wanstore.testing import WeightStoreTests
from wanstore.testing.manifests import manifest_of
from wanstore.testing.stores import FILES, contents, fill, put

BIG = os.urandom(3 << 20)


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store whose pauses are short and whose pieces are small: the least that S3 takes."""
    monkeypatch.setattr(_transfers, "RETRY_DELAYS_SECONDS", (0.01, 0.01))
    return ObjectStore(f"s3://{s3.bucket}/wan")


class TestObjectStore(WeightStoreTests):
    """Everything that any store must do."""

    @pytest.fixture
    def store(self, s3: S3) -> ObjectStore:
        self.s3 = s3
        return ObjectStore(f"s3://{s3.bucket}/wan")

    def damage(self, store: WeightStore, name: str, path: str, data: bytes | None) -> None:
        (folder,) = {key.rsplit("/", key.count("/") - 2)[0] for key in self.s3.sizes() if f"wan/{name}/files-" in key}
        where = {"Bucket": self.s3.bucket, "Key": f"{folder}/{path}"}
        self.s3.client.delete_object(**where) if data is None else self.s3.client.put_object(**where, Body=data)

    def stored_bytes(self, store: WeightStore, tmp_path: Path) -> int:
        return super().stored_bytes(store, tmp_path) + sum(self.s3.sizes().values())


def test_a_pipeline_is_a_plain_folder_that_other_programs_can_copy(s3: S3, store: ObjectStore, tmp_path: Path) -> None:
    """It is sealed as it is on a disk."""
    manifest = put(store, "w")
    for key in s3.sizes():
        if "/files-" in key:
            target = tmp_path / "copied/w" / key.split("/", 3)[3]
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.client.download_file(s3.bucket, key, str(target))
    copied = LocalStore(tmp_path / "copied")
    assert copied.manifest("w") == manifest and copied.verify("w").ok


def test_large_files_go_up_and_come_down_in_pieces(s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size, and empty ones."""
    monkeypatch.setattr(_bucket, "PIECE_BYTES", 5 << 20)
    files = {"a": os.urandom(12_345_678), "b": os.urandom(5 << 20), "c": os.urandom((10 << 20) + 1), "d": b""}
    put(store, "w", files)
    assert sum(request.startswith("POST") for request in s3.requests) == 4, "two multipart uploads"
    assert contents(store.local_path("w")) == files
    assert store.verify("w").ok


def test_what_is_in_the_cache_is_not_fetched_again(s3: S3, store: ObjectStore) -> None:
    put(store, "w")
    first = store.local_path("w")
    s3.requests.clear()
    assert store.local_path("w") == first and len(s3.requests) == 2, "the seal and the manifest"


def test_a_load_without_the_cache_takes_weights_from_the_bucket(
    s3: S3, store: ObjectStore, tiny_sealed: Path, tmp_path: Path
) -> None:
    """Nothing stays on the disk, and the seal is looked at once."""
    wanstore.copy("tiny", tiny_sealed.parent, store)
    shutil.rmtree(tmp_path / "cache")
    pipe = wanstore.load(f"{store.url}/tiny", device="cpu", cache=False)
    assert pipe.load_report.folder == f"{store.url}/tiny" and not (tmp_path / "cache").exists()
    local = wanstore.load(tiny_sealed, device="cpu")
    state = local.transformer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipe.transformer.state_dict().items())


def test_a_stream_goes_on_after_refusals_and_ends_at_expired_credentials(
    s3: S3, store: ObjectStore, tiny_sealed: Path
) -> None:
    """Each range is asked for again by itself; what trying again does not mend is told at once."""
    wanstore.copy("tiny", tiny_sealed.parent, store)
    refused: set[str] = set()

    def busy(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        asked = f"{request['PATH_INFO']} {request.get('HTTP_RANGE')}"
        if "safetensors" not in asked or asked in refused:
            return None
        refused.add(asked)
        return refuse(start, "503 Slow Down", "SlowDown")

    s3.fault = busy
    pipe = wanstore.load(f"{store.url}/tiny", device="cpu", cache=False)
    assert len(refused) >= 3 and pipe.load_report.folder == f"{store.url}/tiny"
    s3.fault = lambda request, start: (
        refuse(start, "403 Forbidden", "ExpiredToken") if "vae/" in request["PATH_INFO"] else None
    )
    with pytest.raises(AccessError, match="ExpiredToken"):
        wanstore.load(f"{store.url}/tiny", device="cpu", cache=False)


def test_a_pipeline_that_is_replaced_while_it_is_streamed_is_told(
    s3: S3, store: ObjectStore, tiny_sealed: Path
) -> None:
    wanstore.copy("tiny", tiny_sealed.parent, store)
    held_at(
        s3,
        lambda method, address: "vae/" in address and method == "GET",
        lambda: put(on_another_machine(store), "tiny", replace=True),
    )
    with pytest.raises(ChangedError, match="was replaced while it was loaded"):
        wanstore.load(f"{store.url}/tiny", device="cpu", cache=False)


def on_another_machine(store: ObjectStore) -> ObjectStore:
    """The same store, where no lock helps."""
    other = ObjectStore(store.url)
    other._staging = LocalStore(store._cache / "another machine")
    return other


def test_of_two_writers_one_wins_and_the_other_is_told(store: ObjectStore) -> None:
    elsewhere = on_another_machine(store)
    with pytest.raises(AlreadyExistsError, match="written by somebody else"), store.stage("w") as stage:
        fill(stage, {"a": b"late"})
        winner = put(elsewhere, "w")
        stage.seal(manifest_of(stage.path, "w"))
    assert store.manifest("w") == winner and store.verify("w").ok
    with pytest.raises(BusyError, match="written by somebody else"), store.stage("w", replace=True) as stage:
        fill(stage, {"a": b"late"})
        winner = put(elsewhere, "w", {"a": b"first"}, replace=True)
        stage.seal(manifest_of(stage.path, "w"))
    assert store.manifest("w") == winner and store.verify("w").ok


def held_at(s3: S3, what: Callable[[str, str], bool], meanwhile: Callable[[], object]) -> None:
    """Hold the first request that is `what`, by method and address, while something else is done."""

    def hold(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if what(request["REQUEST_METHOD"], f"{request['PATH_INFO']}?{request['QUERY_STRING']}"):
            s3.fault = None
            meanwhile()
        return None

    s3.fault = hold


def a_delete(method: str, address: str) -> bool:
    return method == "DELETE" or address.endswith("?delete")


def a_seal(method: str, address: str) -> bool:
    return method == "PUT" and "sealed.json" in address


F, G = {"a": b"first", "b": b"same"}, {"a": b"second", "b": b"same"}


@pytest.mark.parametrize("late", [F, G])
def test_who_cleans_up_late_deletes_nothing_of_what_is_there_by_then(
    s3: S3, store: ObjectStore, late: dict[str, bytes]
) -> None:
    """Not even of an equal pipeline that was stored again meanwhile: by a replacement, and by a delete."""
    elsewhere = on_another_machine(store)
    put(store, "w", F)
    held_at(s3, a_delete, lambda: put(elsewhere, "w", late, replace=True))
    put(store, "w", G, replace=True)
    assert contents(store.local_path("w")) == late and store.verify("w").ok

    held_at(s3, lambda method, address: a_delete(method, address) and not store.list().pipelines, lambda: None)
    s3.fault = None
    seen = itertools.count()
    held_at(
        s3, lambda method, address: a_delete(method, address) and next(seen) == 1, lambda: put(elsewhere, "w", late)
    )
    store.delete("w")
    assert contents(store.local_path("w")) == late and store.verify("w").ok


def test_who_seals_late_takes_nothing_away(s3: S3, store: ObjectStore) -> None:
    put(store, "w", F)
    elsewhere = on_another_machine(store)
    held_at(s3, a_seal, lambda: put(elsewhere, "w", G, replace=True))
    with pytest.raises(BusyError, match="written by somebody else"):
        put(store, "w", F, replace=True)
    assert contents(store.local_path("w")) == G and store.verify("w").ok
    assert len({key.split("/")[2] for key in s3.sizes()}) == 2, "the seal and one folder"


def test_a_name_holds_nothing_but_its_own(s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have put there is neither read nor deleted."""
    monkeypatch.setattr(_store, "ABANDONED_AFTER", datetime.timedelta(0))
    foreign = {"wan/w/notes.txt", "wan/w/files-notes/x", "wan/photos/files-2023/x", "wan/w/files-", "other/w/x"}
    for key in foreign:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"mine")
    put(store, "w")
    put(store, "w", {"a": b"a"}, replace=True)
    assert store.verify("w").ok
    store.delete("w")
    store.sweep()
    assert set(s3.sizes()) == foreign


def test_an_upload_that_nobody_finishes_is_swept_after_a_day(
    s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another machine's, at work: so not before. Whoever resumes it as late as that begins anew."""
    put(store, "sealed")
    abandoned = f"files-{'0123456789abcdef' * 2}"
    for name in ("w", "sealed"):
        s3.client.put_object(Bucket=s3.bucket, Key=f"wan/{name}/{abandoned}/vae/x", Body=b"x")
    before = s3.sizes()
    store.sweep()
    assert s3.sizes() == before
    monkeypatch.setattr(_store, "ABANDONED_AFTER", datetime.timedelta(0))
    put(store, "w")
    assert [key for key in s3.sizes() if abandoned in key] == [f"wan/sealed/{abandoned}/vae/x"], (
        "by who writes the name"
    )
    store.sweep()
    assert not any(abandoned in key for key in s3.sizes()) and store.verify("sealed").ok


@pytest.mark.parametrize(("limit", "same"), [(datetime.timedelta(hours=12), True), (datetime.timedelta(0), False)])
def test_only_an_upload_of_today_is_resumed(
    s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, limit: datetime.timedelta, same: bool
) -> None:
    """An older one may be deleted at any moment."""
    monkeypatch.setattr(_upload, "_RESUMED_UNTIL", limit)
    folders = []
    for status in ("403 Forbidden", ""):
        s3.fault = lambda request, start, status=status: (
            refuse(start, status, "AccessDenied") if status and "sealed.json" in request["PATH_INFO"]
            and request["REQUEST_METHOD"] == "PUT" else None
        )  # fmt: skip
        with contextlib.suppress(AccessError), store.stage("w", resume="key") as stage:
            fill(stage)
            stage.seal(manifest_of(stage.path, "w"))
        folders.append({key.split("/")[2] for key in s3.sizes() if "files-" in key})
    assert (folders[0] == folders[1]) is same and store.verify("w").ok


@pytest.mark.parametrize("seal", [b"{", b"[]", b'{"folder": "../other"}', b'{"folder": 3}', b"x" * 5000])
def test_a_seal_that_names_no_folder_is_damage(s3: S3, store: ObjectStore, seal: bytes) -> None:
    """The neighbours are listed all the same, and it can be replaced."""
    good = put(store, "good")
    s3.client.put_object(Bucket=s3.bucket, Key="wan/bad/sealed.json", Body=seal)
    with pytest.raises(DamagedError):
        store.manifest("bad")
    listing = store.list()
    assert listing.pipelines == (good,) and [one.name for one in listing.unreadable] == ["bad"]
    store.sweep()
    assert put(store, "bad", replace=True) == store.manifest("bad")
    s3.client.put_object(Bucket=s3.bucket, Key="wan/bad/sealed.json", Body=seal)
    store.delete("bad")
    assert store.list() == Listing((good,))


@pytest.mark.parametrize("way", ["up", "down"])
def test_an_error_in_one_file_ends_the_others(
    s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """They do not go on to their own ends, as Ctrl-C would have to wait for."""
    monkeypatch.setattr(_bucket, "PIECE_BYTES", 5 << 20)
    files = {"a": bytes(5 << 20), "b": bytes(100 << 20)}
    if way == "down":
        put(store, "w", files)

    def refuse_a(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if request["PATH_INFO"].endswith("/b"):
            time.sleep(0.2)
            return None
        return refuse(start, "403 Forbidden", "AccessDenied") if request["PATH_INFO"].endswith("/a") else None

    s3.fault = refuse_a
    s3.requests.clear()
    with pytest.raises(AccessError):
        put(store, "w", files) if way == "up" else store.local_path("w")
    assert sum(request.endswith("/b") for request in s3.requests) < 20


# --- faults


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal Server Error"])
def test_a_service_that_refuses_now_and_then_delays_and_no_more(s3: S3, store: ObjectStore, status: str) -> None:
    count = itertools.count()

    def hiccup(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        return refuse(start, status, "SlowDown") if next(count) % 3 == 0 else None

    s3.fault = hiccup
    manifest = put(store, "w")
    assert contents(store.local_path("w")) == FILES and store.manifest("w") == manifest
    assert store.verify("w").ok
    store.delete("w")
    assert store.list() == Listing()


def test_a_service_without_conditional_writes_is_told(s3: S3, store: ObjectStore) -> None:
    """Without them two writers could not be told apart."""

    def know_no_condition(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        conditional = "HTTP_IF_NONE_MATCH" in request or "HTTP_IF_MATCH" in request
        return refuse(start, "501 Not Implemented", "NotImplemented") if conditional else None

    s3.fault = know_no_condition
    with pytest.raises(NotSupportedError, match="conditional writes"):
        put(store, "w")
    assert store.list() == Listing()


def test_a_body_that_breaks_off_is_fetched_again(s3: S3, store: ObjectStore) -> None:
    """Half of it, then nothing: by `local_path` and by `verify`."""
    put(store, "w", {"a": BIG})
    broken = itertools.count()

    def break_off(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if request["REQUEST_METHOD"] != "GET" or not request["PATH_INFO"].endswith("/a") or next(broken) >= 2:
            return None
        start("206 Partial Content", [
            ("Content-Length", str(len(BIG))), ("Content-Range", f"bytes 0-{len(BIG) - 1}/{len(BIG)}"), ("ETag", '"x"'),
            ("Last-Modified", "Mon, 30 Nov 2026 12:00:00 GMT"),
        ])  # fmt: skip
        return [BIG[: 1 << 20]]

    s3.fault = break_off
    assert contents(store.local_path("w")) == {"a": BIG}
    broken = itertools.count()
    assert store.verify("w").ok


def test_an_answer_that_does_not_come_is_asked_for_again(
    s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while without a byte."""
    put(store, "w")
    silent = itertools.count()

    def say_nothing(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if next(silent) == 0:
            time.sleep(2)
        return None

    s3.fault = say_nothing
    monkeypatch.setattr(_bucket, "_SILENCE", datetime.timedelta(seconds=0.5))
    assert ObjectStore(store.url).manifest("w") == store.manifest("w")
    assert next(silent) == 5, "once more than was asked for"


def test_wrong_bytes_are_not_kept(s3: S3, store: ObjectStore) -> None:
    put(store, "w", {"a": BIG, "b": b"b"})
    (key,) = [key for key in s3.sizes() if key.endswith("/a")]
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(len(BIG)))
    with pytest.raises(DamagedError, match=r"a in s3://.*/wan/w is not what its manifest says"):
        store.local_path("w")
    assert store.verify("w").damaged == ("a",)
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(2 * len(BIG)))
    with pytest.raises(DamagedError, match=r"a in s3://.*/wan/w is longer than its manifest says"):
        store.local_path("w")


@pytest.mark.parametrize("key", ["wan//x", "wan/../x", "wan/a\x7f/x"])
def test_an_object_that_cannot_be_named_is_told(s3: S3, store: ObjectStore, key: str) -> None:
    """In one line, as all that is wrong with a store."""
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    with pytest.raises(DamagedError, match="holds an object that cannot be named"):
        store.list()


@pytest.mark.parametrize(
    ("status", "code"), [("403 Forbidden", "ExpiredToken"), ("403 Forbidden", "RequestTimeTooSkewed")]
)
def test_credentials_that_do_not_do_are_told_and_never_shown(
    s3: S3, store: ObjectStore, status: str, code: str
) -> None:
    """Expired ones, or a clock that is wrong."""
    s3.fault = lambda _, start: refuse(start, status, code)
    with pytest.raises(AccessError, match="closed to these credentials") as caught:
        store.manifest("w")
    assert "made-up-secret" not in str(caught.value) and "Signature" not in str(caught.value)


def test_credentials_that_are_missing_are_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is asked for its role, and has none."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", s3.url)
    s3.fault = lambda _, start: refuse(start, "404 Not Found", "none")
    with pytest.raises(AccessError, match=r"no credentials for s3://bucket.*Set those"):
        ObjectStore("s3://bucket").list()


def test_a_service_that_is_gone_is_told(s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bucket, "_RETRY_TIME", datetime.timedelta(seconds=0.2))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"did not respond correctly.*it resumes"):
        ObjectStore(store.url).manifest("w")


def test_a_bucket_that_is_missing_is_told_before_anything_is_staged(s3: S3) -> None:
    store = ObjectStore("s3://no-such-bucket-here")
    for ask in (store.list, lambda: store.manifest("w"), lambda: store.stage("w").__enter__()):
        with pytest.raises(NotFoundError, match="no bucket"):
            ask()


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "az://",
        "gs:///x",
        "s3://b/../c",
        "s3://b/a?x=1",
        "s3://b/a#x",
        "s3://user:word@b",
        "s3://b/a b",
        "s3://b//x",
    ],
)
def test_an_address_that_names_no_bucket_and_folder_is_refused(url: str) -> None:
    """What the client would drop in silence is not there to be dropped."""
    with pytest.raises(InvalidNameError, match="does not name a bucket"):
        open_store(url)


@pytest.mark.parametrize("url", ["gs://bucket/models", "az://container/models"])
def test_other_clouds_are_opened_by_their_addresses(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No request is made yet."""
    monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = open_store(url)
    assert isinstance(store, ObjectStore) and store.url == url


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(NotSupportedError, match=r"pip install 'wanstore\[object\]'"):
        open_store("s3://bucket")


def test_an_upload_that_was_killed_sends_no_file_twice(s3: S3, store: ObjectStore, tmp_path: Path) -> None:
    """The objects that are whole are there already."""
    source = LocalStore(tmp_path / "source")
    put(source, "w", {f"{n}.bin": bytes([n]) * 100_000 for n in range(12)})
    sent = []

    def kill_in_the_middle(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if request["REQUEST_METHOD"] == "PUT":
            sent.append(request["PATH_INFO"])
            if len(sent) == 6:
                process.send_signal(signal.SIGKILL)
        return None

    s3.fault = kill_in_the_middle
    command = [sys.executable, "-m", "wanstore", "copy", "w", "--from", source.url, "--to", store.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait() == -signal.SIGKILL
    s3.fault = None
    there = set(s3.sizes())
    assert there and store.list() == Listing()
    s3.requests.clear()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    again = {request.partition(f"/{s3.bucket}/")[2] for request in s3.requests if request.startswith("PUT")}
    assert not again & there and store.verify("w").ok
    with pytest.raises(WanstoreError, match="already holds"), store.stage("w"):
        pass
