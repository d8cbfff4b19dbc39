"""A store in a bucket, through the real client and against a real S3 service."""

from __future__ import annotations

import datetime
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stores.object.s3 import S3, Answer, refuse
from wanstore.errors import (
    AccessError,
    AlreadyExistsError,
    BusyError,
    DamagedError,
    InvalidNameError,
    NotFoundError,
    NotSupportedError,
    UnreachableError,
    WanstoreError,
)
from wanstore.interfaces import Listing, WeightStore
from wanstore.manifest import MANIFEST_NAME
from wanstore.stores import open_store
from wanstore.stores.local import LocalStore
from wanstore.stores.object import ObjectStore, _bucket, _store
from wanstore.testing import WeightStoreTests
from wanstore.testing.manifests import manifest_of
from wanstore.testing.stores import FILES, contents, fill, put

BIG = os.urandom(3 << 20)


@pytest.fixture
def store(s3: S3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty store whose pauses are short and whose pieces are small: the least that S3 takes."""
    monkeypatch.setattr(_bucket, "RETRY_DELAYS_SECONDS", (0.01, 0.01))
    return ObjectStore(f"s3://{s3.bucket}/wan")


class TestObjectStore(WeightStoreTests):
    """Everything that any store must do."""

    @pytest.fixture
    def store(self, s3: S3) -> ObjectStore:
        self.s3 = s3
        return ObjectStore(f"s3://{s3.bucket}/wan")

    def damage(self, store: WeightStore, name: str, path: str, data: bytes | None) -> None:
        folder = name
        if path != MANIFEST_NAME:
            (sealed,) = {key.split("/")[2] for key in self.s3.sizes() if key.startswith(f"wan/{name}/files-")}
            folder = f"{name}/{sealed}"
        where = {"Bucket": self.s3.bucket, "Key": f"wan/{folder}/{path}"}
        self.s3.client.delete_object(**where) if data is None else self.s3.client.put_object(**where, Body=data)

    def stored_bytes(self, store: WeightStore, tmp_path: Path) -> int:
        return super().stored_bytes(store, tmp_path) + sum(self.s3.sizes().values())


def test_files_are_a_plain_folder_that_other_programs_can_copy(s3: S3, store: ObjectStore) -> None:
    manifest = put(store, "w")
    sizes = {key: size for key, size in s3.sizes().items() if key != f"wan/w/{MANIFEST_NAME}"}
    (folder,) = {"/".join(key.split("/")[:3]) for key in sizes}
    assert sizes == {f"{folder}/{entry.path}": entry.size_bytes for entry in manifest.files}


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
    assert store.local_path("w") == first and len(s3.requests) == 1, "the manifest"


def test_of_two_writers_one_wins_and_the_other_is_told(store: ObjectStore) -> None:
    """On machines of their own, where no lock helps."""
    elsewhere = ObjectStore(store.url)
    elsewhere._staging = LocalStore(store._cache / "another machine")
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


def test_files_that_are_deleted_while_they_count_as_there_are_noticed(s3: S3, store: ObjectStore) -> None:
    """As by a delete of an equal pipeline at the wrong moment: nothing half stays."""

    def lose(request: dict[str, Any], start: Callable[..., Any]) -> Answer | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith(MANIFEST_NAME):
            s3.fault = None
            for key in s3.sizes():
                s3.client.delete_object(Bucket=s3.bucket, Key=key)
        return None

    s3.fault = lose
    with pytest.raises(BusyError, match="deleted while it was written"):
        put(store, "w")
    assert store.list() == Listing() and put(store, "w") == store.manifest("w")


def test_a_name_holds_nothing_but_its_own(s3: S3, store: ObjectStore) -> None:
    """What others have put there is neither read nor deleted."""
    s3.client.put_object(Bucket=s3.bucket, Key="wan/w/notes.txt", Body=b"mine")
    put(store, "w")
    put(store, "w", {"a": b"a"}, replace=True)
    assert store.verify("w").ok
    store.delete("w")
    store.sweep()
    assert s3.sizes() == {"wan/w/notes.txt": 4}


def test_an_upload_that_nobody_finishes_is_swept_after_a_day(
    s3: S3, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another machine's, at work: so not before."""
    put(store, "sealed")
    s3.client.put_object(Bucket=s3.bucket, Key="wan/w/files-0123456789abcdef/vae/x", Body=b"x")
    s3.client.put_object(Bucket=s3.bucket, Key="wan/sealed/files-0123456789abcdef/x", Body=b"x")
    before = s3.sizes()
    store.sweep()
    assert s3.sizes() == before
    monkeypatch.setattr(_store, "ABANDONED_AFTER", datetime.timedelta(0))
    store.sweep()
    assert not any("0123456789abcdef" in key for key in s3.sizes()) and store.verify("sealed").ok


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


def test_wrong_bytes_are_not_kept(s3: S3, store: ObjectStore) -> None:
    put(store, "w", {"a": BIG, "b": b"b"})
    (key,) = [key for key in s3.sizes() if key.endswith("/a")]
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(len(BIG)))
    with pytest.raises(DamagedError, match=r"a in s3://.*/wan/w is not what its manifest says"):
        store.local_path("w")
    assert store.verify("w").damaged == ("a",)


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
    monkeypatch.setattr(_bucket, "_RETRY_SECONDS", datetime.timedelta(seconds=0.2))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"did not respond correctly.*it resumes"):
        ObjectStore(store.url).manifest("w")


def test_a_bucket_that_is_missing_is_told(s3: S3) -> None:
    with pytest.raises(NotFoundError, match="no bucket"):
        ObjectStore("s3://no-such-bucket-here").list()


@pytest.mark.parametrize("url", ["s3://", "az://", "gs://"])
def test_an_address_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(InvalidNameError, match="cannot be opened"):
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
