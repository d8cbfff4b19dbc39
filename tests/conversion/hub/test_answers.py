"""Answers without end: whatever a server sends, the time and memory it takes are bounded."""

from __future__ import annotations

import gzip
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.conversion.hub.hostile_hub import HostileHub
from wanstore.conversion.hub import _source
from wanstore.errors import SourceError, UnreachableError, WanstoreError
from wanstore.interfaces import Quiet

INFO = "/api/models/Wan-AI/Tiny"
FILE = "/Wan-AI/Tiny/resolve/"
OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = itertools.repeat(b"x" * 65536)


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


HOLDING: dict[str, Callable[[HostileHub], Iterable[bytes]]] = {
    "headers that trickle": lambda hub: itertools.chain([OK], hub.slowly(b"X-A: b\r\n")),
    "a status line that trickles": lambda hub: itertools.chain([b"HTTP/1.1 200 "], hub.slowly(b"OK")),
    "endless informational answers": lambda hub: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a body that trickles": lambda hub: itertools.chain([OK, b"\r\n"], hub.slowly(b"[]")),
    "a chunk's length that trickles": lambda hub: itertools.chain(
        [OK, b"Transfer-Encoding: chunked\r\n\r\n"], hub.slowly(b"0")
    ),
    "trailers that trickle": lambda hub: itertools.chain(
        [OK, b"Transfer-Encoding: chunked\r\n\r\n", chunked(b"{}"), b"0\r\n"], hub.slowly(b"X-A: b\r\n")
    ),
    "an error's body that trickles": lambda hub: itertools.chain(
        [b"HTTP/1.1 418 No\r\nContent-Type: application/json\r\n\r\n"], hub.slowly(b"[")
    ),
    "a redirect's body that trickles": lambda hub: itertools.chain(
        [b"HTTP/1.1 302 Moved\r\nLocation: /elsewhere\r\n\r\n"], hub.slowly(b"x")
    ),
    "an endless error": lambda hub: itertools.chain([b"HTTP/1.1 404 No\r\n\r\n"], ENDLESS),
    "an endless redirect": lambda hub: itertools.chain([b"HTTP/1.1 302 M\r\nLocation: /api\r\n\r\n"], ENDLESS),
    "an endless body": lambda hub: itertools.chain([OK, b"\r\n"], ENDLESS),
    "endless headers": lambda hub: itertools.chain([OK], itertools.repeat(b"X-A: b\r\n" * 1000)),
    "a deep answer": lambda hub: [OK, b"\r\n", b"[" * (1 << 20)],
}


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.parametrize("path", [INFO, FILE], ids=["api", "file"])
def test_no_answer_holds_us(hostile: HostileHub, name: str, path: str) -> None:
    """Each ends in time, in little memory, and in one line; some are as good as a whole answer."""
    hostile.answers[path] = lambda _: HOLDING[name](hostile)
    text = ""
    started = time.monotonic()
    tracemalloc.start()
    try:
        hostile.source().head("model_index.json", 2)
    except WanstoreError as error:
        text = str(error)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in text
    assert time.monotonic() - started < 15
    assert most < 80 << 20


def test_a_file_that_trickles_between_its_data_is_given_up(hostile: HostileHub, tmp_path: Path) -> None:
    """The lengths of chunks are no data, so their trickle is not taken for progress."""
    head = b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-1/2\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"{")
    hostile.answers[FILE] = lambda _: itertools.chain([head], hostile.slowly(b"0"))
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="could not be fetched"):
        hostile.source().fetch("model_index.json", tmp_path, Quiet())
    assert time.monotonic() - started < 15


def test_an_endless_answer_is_refused_at_once(hostile: HostileHub) -> None:
    """And not asked for again."""
    hostile.answers[INFO] = lambda _: HOLDING["an endless body"](hostile)
    with pytest.raises(SourceError, match="more than 16 MiB"):
        hostile.source(api_seconds=60)
    assert len(hostile.requests) == 1


def test_a_deep_answer_is_refused(hostile: HostileHub) -> None:
    """Rather than ending in Python's own limit."""
    hostile.tree(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(SourceError, match="nested too deeply"):
        hostile.source()


@pytest.mark.parametrize("encoding", ["gzip", "deflate, gzip", "br"])
@pytest.mark.parametrize("path", [INFO, FILE], ids=["api", "file"])
def test_compressed_answers_are_neither_asked_for_nor_read(hostile: HostileHub, encoding: str, path: str) -> None:
    """A few kilobytes of them can be gigabytes."""
    body = gzip.compress(bytes(1 << 20))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n\r\n".encode()
    hostile.answers[path] = lambda _: [head, body]
    with pytest.raises(SourceError, match="compressed"):
        hostile.source().head("model_index.json", 2)
    assert {headers["accept-encoding"] for _, headers in hostile.requests} == {"identity"}


def test_compressed_errors_are_not_read(hostile: HostileHub) -> None:
    """What is wrong is in their headers."""
    headers = "X-Error-Code: RevisionNotFound\r\nContent-Encoding: gzip\r\n"
    answer = whole_error(gzip.compress(bytes(64 << 20)), headers)
    hostile.answers[INFO] = lambda _: answer
    tracemalloc.start()
    with pytest.raises(WanstoreError, match="no revision"):
        hostile.source()
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def whole_error(body: bytes, headers: str) -> bytes:
    return f"HTTP/1.1 404 No\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.mark.parametrize("reason", ["é".encode(), b"\xff\xfe", b"\x80" * 1000, b"", b"[" * 5000], ids=len)
@pytest.mark.parametrize("name", [b"X-Error-Code", b"X-Error-Message", b"X-HF-Warning", b"Retry-After"], ids=repr)
def test_odd_reasons_of_an_error_are_one_line(hostile: HostileHub, name: bytes, reason: bytes) -> None:
    """Whatever is in the headers that explain it, or in its body."""
    hostile.answers[INFO] = lambda _: [b"HTTP/1.1 418 No\r\n", name, b": ", reason, b"\r\n\r\n", b"[" * 10_000]
    with pytest.raises(UnreachableError, match="The Hub answered 418"):
        hostile.source()


def test_redirects_end(hostile: HostileHub) -> None:
    """A circle of them is refused after ten."""
    hostile.answers[INFO] = lambda path: redirect(path)
    with pytest.raises(UnreachableError, match="more than 10 redirects"):
        hostile.source()
    assert len(hostile.requests) == 11


@pytest.mark.parametrize("location", ["http://[", "ftp://127.0.0.1/x", "http://127.0.0.1:99999/", "\\", "//", ""])
def test_a_redirect_to_nowhere_is_one_line(hostile: HostileHub, location: str) -> None:
    """Also one to an address that is none."""
    hostile.answers[INFO] = lambda _: redirect(location)
    with pytest.raises(UnreachableError):
        hostile.source()


def test_a_token_does_not_go_to_another_host(hostile: HostileHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect leaves it behind when it leaves the Hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_sEcReT")
    other = hostile.url.replace("127.0.0.1", "localhost")
    hostile.answers[INFO] = lambda path: redirect(f"{other}/moved")
    with pytest.raises(WanstoreError):
        hostile.source().head("model_index.json", 2)
    sent = {path: headers.get("authorization") for path, headers in hostile.requests}
    assert sent[INFO] == "Bearer hf_sEcReT" and sent["/moved"] is None


def pages(link: Callable[[int], str], entries: int = 1) -> Callable[[str], Iterable[bytes]]:
    numbers = itertools.count(1)

    def answer(_: str) -> Iterator[bytes]:
        number = next(numbers)
        files = [{"type": "file", "path": f"{number}/{place}", "size": 1, "oid": "b" * 40} for place in range(entries)]
        body = json.dumps(files).encode()
        yield f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nLink: <{link(number)}>; rel="next"\r\n\r\n'.encode()
        yield body

    return answer


@pytest.mark.parametrize(
    ("link", "most"),
    [(lambda _: "/api/models/Wan-AI/Tiny/tree/again", 2), (lambda n: f"/tree/{n % 3}", 4), (lambda n: f"/{n}", 20)],
    ids=["itself", "circle", "endless"],
)
def test_pages_end(hostile: HostileHub, monkeypatch: pytest.MonkeyPatch, link: Callable[[int], str], most: int) -> None:
    """A list that leads back to itself, or has a next page for ever, is refused."""
    monkeypatch.setattr(_source, "_MAX_PAGES", 20)
    answer = pages(link)
    hostile.answers = {f"{INFO}/tree/": answer, "/tree/": answer, "/1": answer}
    hostile.answers |= {f"/{number}": answer for number in range(2, 10)}
    with pytest.raises(SourceError, match="has no end"):
        hostile.source()
    assert len(hostile.requests) - 1 <= most


def test_a_list_of_too_many_files_is_refused(hostile: HostileHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pages they are on."""
    monkeypatch.setattr(_source, "_MAX_ENTRIES", 100)
    hostile.answers[f"{INFO}/tree/"] = pages(lambda n: f"{INFO}/tree/{n}", entries=60)
    with pytest.raises(SourceError, match="has no end"):
        hostile.source()
    assert len(hostile.requests) == 3


@pytest.mark.parametrize("link", ["http://[", "\x80\xff", "http://x:y:z/", "///"])
def test_an_odd_next_page_is_one_line(hostile: HostileHub, link: str) -> None:
    """An address that is none ends the list."""
    hostile.tree(b"[]", f'Link: <{link}>; rel="next"\r\n')
    with pytest.raises(WanstoreError) as caught:
        hostile.source()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "wait", ["9" * 400, "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "", "1e99", "inf", "nan", "²", "٣"]
)
def test_an_odd_retry_after_does_not_hold_us(hostile: HostileHub, wait: str) -> None:
    """A time that is none is ours to choose, and one that is too long is not waited for."""
    head = b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: " + wait.encode() + b"\r\n\r\n"
    hostile.answers[INFO] = lambda _: head
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="429"):
        hostile.source()
    assert time.monotonic() - started < 10
