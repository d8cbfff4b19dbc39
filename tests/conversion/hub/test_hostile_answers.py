"""Answers without end, and answers that lie: each ends in one clear error, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

from wanstore.conversion.hub import HubSource, Limits, _http
from wanstore.conversion.hub._http import _seconds
from wanstore.errors import AccessError, NotSupportedError, SourceError, UnreachableError, WanstoreError
from wanstore.interfaces import Quiet
from wanstore.testing.hub import LoopbackHub

REPO = "Wan-AI/Tiny"
COMMIT = "a" * 40
LIMITS = Limits(
    attempts=2, backoff_seconds=0.01, connect_seconds=2, stall_seconds=0.5, pace_seconds=0.5,
    least_bytes_per_second=50_000, api_seconds=0.7,
)  # fmt: skip
Answer = Callable[[str, dict[str, str]], Iterator[bytes]]


class RawServer:
    """Sends, for each request, the bytes that `answer(path, headers)` yields, until the client hangs up."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.headers: list[dict[str, str]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            head, *lines = request.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            self.headers.append(headers)
            for part in self._answer(head.split()[1], headers):
                connection.sendall(part)

    def close(self) -> None:
        self._listener.close()


def ok(body: bytes, *more: str) -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *more]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def hub_of(entries: Any) -> Answer:
    """A Hub with one repo at one commit, whose list of files is `entries`."""

    def answer(path: str, headers: dict[str, str]) -> Iterator[bytes]:
        yield ok(json.dumps(entries if "/tree/" in path else {"sha": COMMIT}).encode())

    return answer


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], HubSource]]:
    """Make a source of a Hub that answers so."""
    servers: list[RawServer] = []

    def asked(answer: Answer) -> HubSource:
        servers.append(RawServer(answer))
        monkeypatch.setattr(constants, "ENDPOINT", servers[-1].url)
        return HubSource(REPO, limits=LIMITS)

    yield asked
    for server in servers:
        server.close()


def trickled_headers(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-More: 1\r\n"
        time.sleep(0.05)


def trickled_status(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    for byte in b"HTTP/1.1 200 OK" * 1000:
        yield bytes([byte])
        time.sleep(0.05)


def trickled_body(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b" "
        time.sleep(0.05)


def trickled_error(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 418 No\r\n\r\n"
    while True:
        yield b" "
        time.sleep(0.05)


def endless_body(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b"[" * (1 << 20)


def endless_error(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 403 No\r\n\r\n"
    while True:
        yield b"x" * (1 << 20)


def endless_redirect_body(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield f"HTTP/1.1 302 Found\r\nLocation: {path}x\r\n\r\n".encode()
    while True:
        yield b"x" * (1 << 20)


def slow_redirects(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    time.sleep(0.1)
    yield f"HTTP/1.1 302 Found\r\nLocation: {path}x\r\nContent-Length: 0\r\n\r\n".encode()


def quick_redirects(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield f"HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\n\r\n".encode()


def odd_redirect(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 302 Found\r\nLocation: http://[::x/\r\nContent-Length: 0\r\n\r\n"


def file_redirect(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\n\r\n"


def bomb(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield ok(gzip.compress(bytes(64 << 20)), "Content-Encoding: gzip")


def deep(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield ok(b"[" * 1_000_000)


def not_json(path: str, headers: dict[str, str]) -> Iterator[bytes]:
    yield ok(b"\xff\xfe")


ENDLESS = [
    (trickled_headers, "no complete answer within"),
    (trickled_status, "no complete answer within"),
    (trickled_body, "no complete answer within"),
    (trickled_error, "answered 418"),
    (endless_body, "more than 16 MiB"),
    (endless_error, "may not read"),
    (endless_redirect_body, "redirects"),
    (slow_redirects, "no complete answer within"),
    (quick_redirects, "more than 10 redirects"),
    (odd_redirect, "a redirect to no address"),
    (file_redirect, "could not be fetched"),
    (bomb, "a compressed answer"),
    (deep, "not JSON"),
    (not_json, "not JSON"),
]


@pytest.mark.parametrize(("answer", "message"), ENDLESS, ids=[answer.__name__ for answer, _ in ENDLESS])
def test_an_answer_without_end_ends_in_time_and_memory(
    ask: Callable[[Answer], HubSource], answer: Answer, message: str
) -> None:
    """Two attempts, and no more than the bounds say."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(WanstoreError, match=message) as caught:
        ask(answer)
    assert isinstance(caught.value, UnreachableError | AccessError)
    assert time.monotonic() - began < 20  # it is 2 s, on a machine that does nothing else
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("kind", ["headers", "body"])
def test_a_file_that_trickles_ends_in_time(ask: Callable[[Answer], HubSource], tmp_path: Path, kind: str) -> None:
    """Its headers by the deadline, its body by the pace."""
    listed = hub_of([{"type": "file", "path": "config.json", "size": 1000, "oid": "b" * 40}])

    def answer(path: str, headers: dict[str, str]) -> Iterator[bytes]:
        if "/resolve/" not in path:
            yield from listed(path, headers)
        elif kind == "headers":
            yield from trickled_headers(path, headers)
        else:
            yield b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999/1000\r\n\r\n"
            for _ in range(1000):
                yield b"x"
                time.sleep(0.05)

    with pytest.raises(UnreachableError):
        ask(answer).fetch("config.json", tmp_path, Quiet())


def test_pages_without_end_are_refused(ask: Callable[[Answer], HubSource], monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of files has an end."""
    monkeypatch.setattr("wanstore.conversion.hub._source._MAX_PAGES", 20)

    def answer(path: str, headers: dict[str, str]) -> Iterator[bytes]:
        more = f'Link: <{path}x>; rel="next"'
        yield ok(b"[]", more) if "/tree/" in path else ok(json.dumps({"sha": COMMIT}).encode())

    with pytest.raises(SourceError, match="has no end"):
        ask(answer)


def test_pages_in_a_circle_are_refused(ask: Callable[[Answer], HubSource]) -> None:
    """At the first that was there already."""

    def answer(path: str, headers: dict[str, str]) -> Iterator[bytes]:
        more = f'Link: <{path}>; rel="next"'
        yield ok(b"[]", more) if "/tree/" in path else ok(json.dumps({"sha": COMMIT}).encode())

    with pytest.raises(SourceError, match="has no end"):
        ask(answer)


def entry(**changes: Any) -> dict[str, Any]:
    return {"type": "file", "path": "config.json", "size": 1, "oid": "b" * 40, **changes}


@pytest.mark.parametrize(
    "entries",
    [
        {"error": "x"}, 1, None, [1], [None], [[]], [{"type": "file"}], [{"type": "file"}] * 100_001,
        [entry(size=-1)], [entry(size=float("inf"))], [entry(size=float("nan"))], [entry(size="1")], [entry(size=True)],
        [entry(size=1.0)], [entry(oid=None)], [entry(oid="../x")], [entry(lfs={"oid": "x"})], [entry(lfs=[1])],
        [entry(path=1)], [entry(path=None)],
    ],
    ids=lambda entries: json.dumps(entries)[:60],
)  # fmt: skip
def test_a_list_of_files_that_is_none_is_refused(ask: Callable[[Answer], HubSource], entries: Any) -> None:
    """In one line that a terminal can show."""
    with pytest.raises(SourceError, match="list of files") as caught:
        ask(hub_of(entries))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "path",
    [
        "../x", "/x", "a/../x", "./x", "a/./x", "a//x", "a/", "a\\x", "a\0x", "", ".", "\ud800", "a\nx", "a\x1b[2J",
        "x" * 2000,
    ],
    ids=ascii,
)  # fmt: skip
def test_a_file_name_that_leaves_the_folder_or_hides_in_it_is_refused(
    ask: Callable[[Answer], HubSource], path: str
) -> None:
    """Whatever a file system would make of it."""
    with pytest.raises(SourceError, match="outside its folder") as caught:
        ask(hub_of([entry(path=path)]))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5), ("0", 0), ("", None), ("-1", None), ("²", None), ("1e9", None), ("nan", None), ("soon", None),
     ("9" * 100, None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Thu, 99 Jan 1970 00:00:00 GMT", None)],
)  # fmt: skip
def test_a_retry_after_is_seconds_or_a_date_or_nothing(value: str, seconds: float | None) -> None:
    """An odd one is no traceback."""
    assert _seconds(value) == seconds


def test_a_redirect_to_another_host_does_not_get_the_token(
    ask: Callable[[Answer], HubSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for the Hub alone."""
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    other = RawServer(hub_of([]))
    seen: list[dict[str, str]] = []

    def answer(path: str, headers: dict[str, str]) -> Iterator[bytes]:
        seen.append(headers)
        yield f"HTTP/1.1 302 Found\r\nLocation: {other.url}{path}\r\nContent-Length: 0\r\n\r\n".encode()

    ask(answer)
    assert seen[0]["authorization"] == "Bearer hf_made_up"
    assert other.headers and not any("authorization" in headers for headers in other.headers)
    other.close()


# --- settings


def chain(error: BaseException) -> str:
    """Everything that a traceback of it could show."""
    texts, left = [], [error]
    while left:
        one = left.pop()
        texts.append(f"{one!r} {one}")
        left += [other for other in (one.__cause__, one.__context__) if other]
    return " ".join(texts)


@pytest.fixture
def fresh_session() -> Iterator[None]:
    """The client reads the environment when its session is made."""
    close_session()
    yield
    close_session()


@pytest.mark.usefixtures("fresh_session")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SSL_CERT_FILE", "/no/such/file.pem", "SSL_CERT_FILE names /no/such/file.pem, which is not there"),
        ("SSL_CERT_DIR", "/no/such/folder", "SSL_CERT_DIR names /no/such/folder, which is not there"),
        ("SSL_CERT_FILE", __file__, "proxy or certificate setting cannot be used .*SSL_CERT_FILE"),
        ("ALL_PROXY", "socks5://user:s3cret@127.0.0.1:9", "SOCKS proxy needs the package socksio .*ALL_PROXY"),
        ("HTTPS_PROXY", "ftp://user:s3cret@127.0.0.1:9", "proxy or certificate setting cannot be used .*HTTPS_PROXY"),
        ("HTTP_PROXY", "http://user:s3cret@[::x", "proxy or certificate setting cannot be used .*HTTP_PROXY"),
    ],
)
def test_a_wrong_setting_is_named_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    """Each is a traceback of the client's own otherwise."""
    for name in _http._NETWORK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    with pytest.raises(NotSupportedError, match=message) as caught:
        HubSource(REPO, limits=LIMITS)
    assert "s3cret" not in chain(caught.value)


def test_a_token_that_is_no_ascii_is_told_and_kept_out_of_the_traceback(
    ask: Callable[[Answer], HubSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted with a stray character, as tokens are."""
    monkeypatch.setenv("HF_TOKEN", "hf_s3cretü")
    with pytest.raises(AccessError, match="invalid characters") as caught:
        ask(hub_of([]))
    assert "s3cret" not in chain(caught.value)


def test_a_password_in_the_endpoint_is_used_and_never_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mirror behind a login."""
    server = RawServer(hub_of([entry()]))
    monkeypatch.setattr(constants, "ENDPOINT", server.url.replace("//", "//user:s3cret@"))
    source = HubSource(REPO, limits=LIMITS)
    assert all(headers["authorization"].startswith("Basic ") for headers in server.headers)
    with pytest.raises(WanstoreError) as caught:
        source.fetch("config.json", tmp_path, Quiet())
    assert "s3cret" not in str(caught.value) + repr(source.record)
    server.close()
    with pytest.raises(UnreachableError, match=r"http://\*\*\*@127") as caught:
        HubSource(REPO, limits=LIMITS)
    assert "s3cret" not in str(caught.value)


# --- leftovers


@pytest.mark.parametrize("leftover", ["config.json", "config.json.part", "config.json.pieces"])
@pytest.mark.parametrize("kind", ["bytes", "folder", "link", "empty", "long"])
def test_damaged_leftovers_of_a_download_are_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leftover: str, kind: str
) -> None:
    """Whatever is in the place of a file of ours; a link is removed, and nothing is written through it."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/config.json").write_bytes(b"{}" * 1000)
    precious = tmp_path / "precious"
    precious.write_text("data")
    place = tmp_path / "into" / leftover
    place.parent.mkdir()
    if kind == "folder":
        (place / "x").mkdir(parents=True)
    elif kind == "link":
        place.symlink_to(precious)
    else:
        place.write_bytes({"bytes": b"\xff\xfe[0-9", "empty": b"", "long": b"[0-2000]\n" * 3_000_000}[kind])
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        hub.add_repo(REPO, tmp_path / "repo")
        fetched = HubSource(REPO, limits=LIMITS).fetch("config.json", tmp_path / "into", Quiet())
    assert fetched.read_bytes() == b"{}" * 1000 and not fetched.is_symlink()
    assert precious.read_text() == "data" and [path.name for path in fetched.parent.iterdir()] == ["config.json"]
