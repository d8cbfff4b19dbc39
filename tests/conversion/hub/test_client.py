"""What is wrong with the client's environment is named, and no secret of it is."""

from __future__ import annotations

import base64
import http.server
import logging
import os
import shutil
import ssl
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.conversion.hub.hostile_hub import LIMITS, HostileHub, whole
from wanstore.conversion.hub import HubSource, _http
from wanstore.conversion.hub._http import _body
from wanstore.errors import AccessError, UnreachableError, WanstoreError
from wanstore.interfaces import Quiet
from wanstore.testing.hub import LoopbackHub, make_certificate

SECRET = "sEcReT"


@pytest.fixture(autouse=True)
def plain_environment(new_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
            monkeypatch.delenv(name)


def source() -> HubSource:
    return HubSource("Wan-AI/Tiny", limits=LIMITS)


def everything_of(error: BaseException) -> str:
    """All that the error and those before it say, and what requests they hold."""
    texts, seen, left = [], set(), [error]
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            texts += [repr(one), str(one), repr(vars(one)), repr(getattr(one, "object", ""))]
            request = vars(one).get("_request") or getattr(vars(one).get("response"), "request", None)
            texts.append(repr(request and request.headers.raw))
            left += [other for other in (one.__cause__, one.__context__) if other]
    return " ".join(texts)


@pytest.mark.parametrize("place", ["variable", "file"])
@pytest.mark.parametrize("token", [f"hf_{SECRET}é", f"hf_{SECRET}\x01x", f"hf_{SECRET}\udcff"], ids=ascii)
def test_a_token_that_no_header_can_hold_is_not_told(
    hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, token: str
) -> None:
    """Neither in the error nor in what it hides."""
    if place == "variable":
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        (tmp_path / "token").write_text(token, errors="surrogateescape")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(AccessError, match="invalid characters") as caught:
        source()
    assert SECRET not in everything_of(caught.value)
    assert hostile.requests == []


def test_a_token_file_that_cannot_be_read_is_said(
    hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder in its place, for one."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path))
    with pytest.raises(AccessError, match=r"token cannot be read .*set HF_TOKEN"):
        source()


@pytest.mark.parametrize("status", ["401 No", "403 No", "404 No", "500 No", "418 No"])
def test_a_failure_keeps_no_request(hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    """The client's errors hold the headers that were sent, so ours do not hold the client's."""
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")
    hostile.answers["/"] = lambda _: whole(b"", status)
    with pytest.raises(WanstoreError) as caught:
        source()
    assert hostile.requests and SECRET not in everything_of(caught.value)


def test_a_password_in_the_endpoint_is_sent_and_not_told(
    hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Basic authentication to the Hub's own host, and in no address, log or error."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(constants, "ENDPOINT", hostile.url.replace("//", f"//me:{SECRET}%40%2F@"))
    hub_source = source()
    hostile.answers["/Wan-AI"] = lambda _: whole(b"", "503 No")
    for fails in (lambda: hub_source.head("model_index.json", 2), lambda: hub_source.head("no.json", 2), source):
        if fails is source:
            hostile.answers["/api"] = lambda _: whole(b"", "403 No")
        with pytest.raises(WanstoreError) as caught:
            fails()
        assert SECRET not in everything_of(caught.value) + str(caught.getrepr(style="native"))
    sent = {headers["authorization"] for _, headers in hostile.requests}
    assert sent == {"Basic " + base64.b64encode(f"me:{SECRET}@/".encode()).decode()}
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "huggingface.co", "ftp://h", "http://", "http://[::1", "http://h:port", "http://h:0", "http://h:99999",
        f"http://me:{SECRET}/x@h", f"http://me:{SECRET}#@h", f"http://me:{SECRET}?@h", f"//me:{SECRET}@h",
        f"http://me:{SECRET}@h:port", f"me:{SECRET}@h", f"http://me:{SECRET}@",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_none_is_named_but_not_told(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """A password may be in any part of it."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(UnreachableError, match="HF_ENDPOINT is not") as caught:
        source()
    assert SECRET not in everything_of(caught.value)


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5://h:1080", "SOCKS proxy, which needs the package socksio"),
        ("socks4://h:1080", "not the address of a proxy"),
        ("http://h:port", "not the address of a proxy"),
        (f"http://me:{SECRET}/@h:1", "not the address of a proxy"),
        (f"nonsense://me:{SECRET}@h:1", "not the address of a proxy"),
        ("http://[::1", "not the address of a proxy"),
        ("http://h\x01", "not the address of a proxy"),
        (f"http://me:{SECRET}@127.0.0.1:1", "connect error"),
        (f"http://me:{SECRET}é@127.0.0.1:1", "connect error"),
        ("http://", None),
        ("://", None),
        ("h:99999", None),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, proxy: str, message: str | None
) -> None:
    """By its variable: the address may hold a password."""
    if proxy.startswith("socks5") and find_spec("socksio"):
        pytest.skip("the package for SOCKS is installed")
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UnreachableError, match=message) as caught:
        source()
    assert SECRET not in everything_of(caught.value) and "\n" not in str(caught.value)
    if message and "proxy" in message:
        assert "HTTP_PROXY" in str(caught.value)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_a_missing_file_of_certificates_is_named(
    tls: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """With its variable, at once."""
    monkeypatch.setenv(name, str(tmp_path / "missing"))
    with pytest.raises(UnreachableError, match=f"{name} names {tmp_path}/missing, which does not exist"):
        source()


def test_a_file_that_holds_no_certificates_is_named(
    hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(UnreachableError, match=r"SSL_CERT_FILE=.*/empty\.pem"):
        source()


def test_a_certificate_that_is_not_trusted_is_said_at_once(tls: str) -> None:
    """Trying again would not help."""
    with pytest.raises(UnreachableError, match="Set SSL_CERT_FILE to"):
        source()


def test_tls_answers_that_trickle_end_too(tls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline ends the connection below TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", tls)
    with pytest.raises(UnreachableError, match="no complete answer within"):
        source()


def test_files_come_over_tls(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bodies straight from the connection, as without TLS, up to their end."""
    (tmp_path / "repo").mkdir()
    content = os.urandom(3_000_001)
    (tmp_path / "repo/big.safetensors").write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    kinds = []

    def body(response: Any) -> Iterator[bytes | memoryview]:
        for block in _body(response):
            kinds.append(type(block))
            yield block

    monkeypatch.setattr(_http, "_body", body)
    with LoopbackHub(certificate=certificate) as hub:
        hub.add_repo("Wan-AI/Tiny", tmp_path / "repo")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        fetched = HubSource("Wan-AI/Tiny").fetch("big.safetensors", tmp_path / "into", Quiet())
    assert fetched.read_bytes() == content
    assert kinds[0] is bytes and set(kinds[1:]) == {memoryview}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A PEM file with a certificate of this machine, which no one trusts, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    return make_certificate(tmp_path)


@pytest.fixture
def tls(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Hub over TLS, whose headers trickle; the file of its certificate."""
    ending = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not ending.wait(0.05):
                self.wfile.write(b"X-A: b\r\n")

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that hang up, or do not trust us."""

    with Server(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"https://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield str(certificate)
        ending.set()
        server.shutdown()
