"""A Hub on 127.0.0.1 that the real, unmodified `huggingface_hub` client talks to.

It serves folders as model repos: revisions, trees, small files, and large ones behind a redirect to an address
that expires. With `xet` large files are also in a content store, which the real `hf_xet` reads by tokens that expire.
`LoopbackHub.faults` breaks chosen answers in the ways that networks do. For tests and the demo.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import attrs

from wanstore.testing._content import ContentStore

_LFS_FROM_BYTES = 10 << 20
_CHUNK_BYTES = 1 << 20
_LINK_SECONDS = 3600
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+)(/(?P<path>.*))?)?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_XET_TOKEN = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-read-token/(?P<revision>[^/]+)")
_CONTENT = re.compile(r"/cas/(?P<version>v[12])/reconstructions/(?P<file>[0-9a-f]{64})")
_XORB = re.compile(r"/xorbs/(?P<name>[0-9a-f]{64})")
_CDN = re.compile(r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")


@attrs.define
class Fault:
    """The next `count` answers to GETs whose path matches `pattern` (as in a shell) go wrong.

    `status` answers `status`; `drop` (FIN), `reset` (RST), `silent` and `trickle` (20 bytes a second) set in
    after `after_bytes` of the body; `flip` alters the byte there, and `truncate` ends there, with headers that
    agree. `shift` answers the range that begins `after_bytes` later, and `whole` all of the file.
    """

    kind: Literal["status", "drop", "reset", "silent", "trickle", "flip", "truncate", "shift", "whole"]
    pattern: str = "*"
    count: int = 1
    after_bytes: int = 0
    status: int = 503
    retry_after: int | None = None


@attrs.frozen
class Request:
    """What a client asked for; `authorized` is whether it sent a token, which is not kept."""

    method: str
    path: str
    range: str | None
    authorized: bool


@attrs.frozen
class Blob:
    """A file of a commit: `oid` is git's, `sha256` that of its content, there for LFS files only, as is `xet`."""

    file: Path
    size: int
    oid: str
    sha256: str | None
    xet: str | None = None

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.oid}"'


@attrs.define
class Repo:
    """A model repo: its commits' files, and who may read it."""

    gated: bool
    private: bool
    main: str = ""
    commits: dict[str, dict[str, Blob]] = attrs.field(factory=dict)


class LoopbackHub:
    """Serves folders as model repos at `url`, inside a `with` block.

    `tokens` are the valid ones; nobody has accepted a gated repo's terms but who holds a token of `accepted`.
    `rate_bytes` a second, if given, is shared by all connections. `page_entries` is the length of a tree's page.
    `xet` is an empty folder for the content store; tokens for it, and addresses in it, expire after `xet_seconds`.
    With `certificate`, such as `make_certificate` makes, all of it is over TLS.
    `requests` are those that came, and `sent_bytes` what files and xorbs have taken.
    """

    def __init__(
        self,
        *,
        rate_bytes: int | None = None,
        page_entries: int = 1000,
        xet: Path | None = None,
        xet_seconds: float = 3600,
        certificate: Path | None = None,
    ) -> None:
        self.rate_bytes = rate_bytes
        self.page_entries = page_entries
        self.content = ContentStore(xet) if xet else None
        self.xet_seconds = xet_seconds
        self._certificate = certificate
        self.tokens: set[str] = set()
        self.accepted: set[str] = set()
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent_bytes = 0
        self.closing = threading.Event()
        self._secret = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._line_free_at = 0.0

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add_repo(self, name: str, folder: Path, *, gated: bool = False, private: bool = False) -> str:
        """Make `folder` the newest commit of the repo `name`, and return that commit.

        Files are read when asked for: a folder must stay as it is, and a new commit needs another folder.
        """
        files = {
            path.relative_to(folder).as_posix(): _blob(path, self.content)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        state = json.dumps([name, {path: blob.etag for path, blob in files.items()}])
        commit = hashlib.sha1(state.encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo(gated, private))
        repo.gated, repo.private, repo.main = gated, private, commit
        repo.commits[commit] = files
        return commit

    def take_fault(self, path: str, *kinds: str) -> Fault | None:
        """The first fault of these kinds that is due for `path`; it is then spent once."""
        with self._lock:
            for fault in self.faults:
                if fault.count > 0 and fault.kind in kinds and fnmatch(path, fault.pattern):
                    fault.count -= 1
                    return fault
        return None

    def sign(self, path: str, expires: int) -> str:
        """The signature that makes an address below `/cdn/` valid until `expires`, in Unix seconds."""
        return hmac.new(self._secret, f"{path}:{expires}".encode(), "sha256").hexdigest()

    def add_sent(self, sent: int) -> None:
        """So much of a body was sent."""
        with self._lock:
            self.sent_bytes += sent

    def wait_for_line(self, size: int) -> None:
        """Take the time that `size` bytes need at `rate_bytes`."""
        if self.rate_bytes:
            with self._lock:
                self._line_free_at = max(time.monotonic(), self._line_free_at) + size / self.rate_bytes
                free_at = self._line_free_at
            self.closing.wait(max(0.0, free_at - time.monotonic()))


def make_certificate(folder: Path) -> Path:
    """A PEM file in `folder` with a certificate of 127.0.0.1, which no one trusts, and its key. Needs openssl."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    made.write_bytes(made.read_bytes() + key.read_bytes())
    return made


def _blob(path: Path, content: ContentStore | None) -> Blob:
    size = path.stat().st_size
    if path.suffix != ".safetensors" and size < _LFS_FROM_BYTES:
        return Blob(path, size, _git_oid(path.read_bytes()), None)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(path, size, _git_oid(pointer.encode()), sha256, content.add(path) if content else None)


def _git_oid(data: bytes, kind: str = "blob") -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients that hang up are what tests are made of
            super().handle_error(request, client_address)


class _RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "", retry_after: int | None = None) -> None:
        self.status, self.message = status, message
        headers = {"X-Error-Code": code, "X-Error-Message": message, "Retry-After": retry_after}
        self.headers = {name: str(value) for name, value in headers.items() if value not in ("", None)}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Tests look at `hub.requests` instead."""

    def do_GET(self) -> None:
        self.route = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        authorized = "Authorization" in self.headers
        self.hub.requests.append(Request(self.command, self.route, self.headers["Range"], authorized))
        try:
            if self.command == "GET" and (fault := self.hub.take_fault(self.route, "status")):
                raise _RefusalError(fault.status, retry_after=fault.retry_after)
            self._answer()
        except _RefusalError as refusal:
            self._json({"error": refusal.message}, refusal.status, refusal.headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self) -> None:
        path = urlsplit(self.path).path  # still quoted: a revision may hold slashes
        answers: dict[re.Pattern[str], Callable[..., None]] = {
            _API: self._api,
            _FILE: self._file,
            _CDN: self._cdn,
            _XET_TOKEN: self._xet_token,
            _CONTENT: self._content,
            _XORB: self._xorb,
        }
        for pattern, answer in answers.items():
            if match := pattern.fullmatch(path):
                answer(**{name: unquote(value or "") for name, value in match.groupdict().items()})
                return
        raise _RefusalError(404, message="Not Found")

    def _commit(self, name: str, revision: str) -> str:
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise _RefusalError(401, message="Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not token):
            raise _RefusalError(404 if token else 401, "RepoNotFound", "Repository not found")
        commit = repo.main if revision in ("", "main") else revision
        if commit not in repo.commits:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, repo: str, what: str, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        files = self.hub.repos[repo].commits[commit]
        if what == "tree":
            self._tree(files, path)
            return
        rights = {"private": self.hub.repos[repo].private, "gated": "auto" if self.hub.repos[repo].gated else False}
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], **rights})

    def _tree(self, files: dict[str, Blob], below: str) -> None:
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        base = PurePosixPath(below)
        inside = {path: blob for path, blob in files.items() if not below or base in PurePosixPath(path).parents}
        if below and not inside:
            raise _RefusalError(404, "EntryNotFound", f"{below} does not exist")
        folders = {folder for path in inside for folder in PurePosixPath(path).parents if base in folder.parents}
        entries = [_folder_entry(str(folder)) for folder in folders] + [_entry(*item) for item in inside.items()]
        wanted = [entry for entry in entries if recursive or PurePosixPath(entry["path"]).parent == base]
        wanted.sort(key=lambda entry: str(entry["path"]))
        first = int(self.query.get("cursor", ["0"])[0])
        after = first + self.hub.page_entries
        link = f'<{self.hub.url}{urlsplit(self.path).path}?recursive={recursive}&cursor={after}>; rel="next"'
        self._json(wanted[first:after], headers={"Link": link} if after < len(wanted) else {})

    def _file(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if self.hub.repos[repo].gated and token not in self.hub.accepted:
            message = f"Access to model {repo} is restricted. You must have access to it and be authenticated"
            raise _RefusalError(403 if token else 401, "GatedRepo", message)
        blob = self.hub.repos[repo].commits[commit].get(path)
        if blob is None:
            raise _RefusalError(404, "EntryNotFound", "Entry not found")
        headers = self._headers_of(blob, repo, commit)
        if blob.sha256 is None:
            self._send_file(blob, headers)
            return
        location = self._signed(f"/cdn/{repo}/{commit}/{path}", _LINK_SECONDS)
        self._head(302, {**headers, "Location": location, "Content-Length": "0"})

    def _headers_of(self, blob: Blob, repo: str, commit: str) -> dict[str, str]:
        headers = {"X-Repo-Commit": commit, "ETag": blob.etag}
        if blob.sha256:
            headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": blob.etag}
        if blob.xet:
            token = f"{self.hub.url}/api/models/{repo}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{token}>; rel="xet-auth"'}
        return headers

    def _signed(self, path: str, seconds: float) -> str:
        """An address that is good for so long."""
        expires = int(time.time() + seconds)
        return f"{self.hub.url}{quote(path)}?Expires={expires}&Signature={self.hub.sign(path, expires)}"

    def _check_signature(self) -> None:
        expires, signature = (self.query.get(name, ["0"])[0] for name in ("Expires", "Signature"))
        if int(expires) < time.time() or not hmac.compare_digest(signature, self.hub.sign(self.route, int(expires))):
            raise _RefusalError(403, message="Access denied")

    def _xet_token(self, repo: str, revision: str) -> None:
        self._commit(repo, revision)
        expires = int(time.time() + self.hub.xet_seconds)
        token, url = f"{expires}.{self.hub.sign('cas', expires)}", f"{self.hub.url}/cas"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        self._json({"casUrl": url, "exp": expires, "accessToken": token}, headers=headers)

    def _content(self, version: str, file: str) -> None:
        """What a file, or a range of it, is made of."""
        expires, _, signature = (self.headers["Authorization"] or "").removeprefix("Bearer ").partition(".")
        if not expires.isdigit() or not hmac.compare_digest(signature, self.hub.sign("cas", int(expires))):
            raise _RefusalError(401, message="not a token")
        if int(expires) < time.time():
            raise _RefusalError(401, message="the token has expired")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "bytes=0-")
        content = self.hub.content
        if content is None or asked is None:
            raise _RefusalError(404)
        first, last = asked.groups()
        try:
            skip, terms = content.reconstruction(file, int(first), int(last) + 1 if last else None)
        except KeyError:
            raise _RefusalError(404) from None
        if not terms:
            raise _RefusalError(416)
        self._json(
            content.answer(version, skip, terms, lambda xorb: self._signed(f"/xorbs/{xorb}", self.hub.xet_seconds))
        )

    def _xorb(self, name: str) -> None:
        self._check_signature()
        try:
            file = self.hub.content.xorb(name).file if self.hub.content else None
        except KeyError:
            file = None
        if file is None:
            raise _RefusalError(404)
        self._send_file(Blob(file, file.stat().st_size, name, None), {})

    def _cdn(self, repo: str, revision: str, path: str) -> None:
        self._check_signature()
        blob = self.hub.repos[repo].commits[revision][path]
        # The client follows redirects within one host before it looks at the headers, so they are here as well.
        self._send_file(blob, self._headers_of(blob, repo, revision))

    def _send_file(self, blob: Blob, headers: dict[str, str]) -> None:
        start, stop, status = 0, blob.size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or "")
        if asked and asked.group() != "bytes=-" and not self.hub.take_fault(self.route, "whole"):
            first, last = asked.groups()
            start = int(first) if first else max(0, blob.size - int(last))
            stop = min(blob.size, int(last) + 1) if first and last else blob.size
            status = 206
            if start >= stop:
                self._head(416, {"Content-Range": f"bytes */{blob.size}", "Content-Length": "0"})
                return
            if fault := self.hub.take_fault(self.route, "shift"):
                start = min(start + fault.after_bytes, stop - 1)
        sending = self.command == "GET"
        if sending and (fault := self.hub.take_fault(self.route, "truncate")):
            stop = min(stop, start + fault.after_bytes)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        self._head(status, {**headers, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)})
        if sending:
            with blob.file.open("rb", buffering=0) as file:
                self._send_body(file, start, stop)

    def _send_body(self, file: BinaryIO, start: int, stop: int) -> None:
        fault = self.hub.take_fault(self.route, "drop", "reset", "silent", "trickle", "flip")
        turn = min(stop, start + fault.after_bytes) if fault else stop
        self._send_range(file, start, turn)
        if fault and fault.kind == "flip" and turn < stop:
            self.connection.sendall(bytes([os.pread(file.fileno(), 1, turn)[0] ^ 0x10]))
            self._send_range(file, turn + 1, stop)
        elif fault:
            self._break(fault, os.pread(file.fileno(), 1024, turn))

    def _send_range(self, file: BinaryIO, start: int, stop: int) -> None:
        chunk = min(_CHUNK_BYTES, max(4096, self.hub.rate_bytes // 50)) if self.hub.rate_bytes else _CHUNK_BYTES
        while start < stop and not self.hub.closing.is_set():
            self.hub.wait_for_line(min(chunk, stop - start))
            sent = self.connection.sendfile(file, start, min(chunk, stop - start))
            if not sent:
                raise ConnectionAbortedError("the file was cut while it was served")
            start += sent
            self.hub.add_sent(sent)

    def _break(self, fault: Fault, rest: bytes) -> None:
        self.close_connection = True
        for byte in _slowly(rest, self.hub.closing) if fault.kind == "trickle" else ():
            self.connection.sendall(byte)
        if fault.kind == "silent":
            self.hub.closing.wait()
        if fault.kind == "reset":
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def _json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data).encode()
        length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._head(status, {**length, **(headers or {})})
        if self.command == "HEAD":
            return
        if fault := self.hub.take_fault(self.route, "drop", "reset", "silent", "trickle"):
            self.connection.sendall(body[: fault.after_bytes])
            self._break(fault, body[fault.after_bytes :])
        else:
            self.connection.sendall(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _slowly(data: bytes, closing: threading.Event) -> Iterator[bytes]:
    for position in range(len(data)):
        if closing.wait(0.05):
            return
        yield data[position : position + 1]


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    if blob.xet:
        entry["xetHash"] = blob.xet
    return entry


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": _git_oid(path.encode(), "tree")}
