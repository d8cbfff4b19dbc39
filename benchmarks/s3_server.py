"""A bucket on 127.0.0.1 whose objects are a folder's files: read-only, by `sendfile`, from several processes.

As quick as loopback, so that what is measured is the client. It asks nobody for a signature.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

BUCKET = "models"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root: Path
    connection_bytes_a_second: float

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.root / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
        if not path.is_file():
            error = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(error)))
            self.end_headers()
            self.wfile.write(error if body else b"")
            return
        size, span = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        stop = min(int(span[2]) + 1 if span and span[2] else size, size)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(stop - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("ETag", f'"{size}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.end_headers()
        if body:
            self.send_file(path, start, stop)

    def send_file(self, path: Path, start: int, stop: int) -> None:
        self.wfile.flush()
        began, first = time.monotonic(), start
        with path.open("rb") as file:
            while start < stop:
                count = min(stop - start, 1 << 20) if self.connection_bytes_a_second else stop - start
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, count)
                if self.connection_bytes_a_second:
                    time.sleep(max(0, began + (start - first) / self.connection_bytes_a_second - time.monotonic()))

    def log_message(self, *_: Any) -> None: ...


def _serve(port: int, root: Path, rate: float) -> None:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            super().server_bind()

    handler = type("Handler", (_Handler,), {"root": root, "connection_bytes_a_second": rate})
    Server(("127.0.0.1", port), handler).serve_forever()


class FolderBucket:
    """The bucket of what is in `root`. With a rate, no connection gets more: S3 gives one some 90 MB/s."""

    def __init__(self, root: Path, *, processes: int = 8, connection_bytes_a_second: float = 0.0) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = (self.port, root, connection_bytes_a_second)
        context = multiprocessing.get_context("spawn")
        self._processes = [context.Process(target=_serve, args=arguments, daemon=True) for _ in range(processes)]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        end = time.monotonic() + 30
        for _ in self._processes:  # each takes some of the connections
            while time.monotonic() < end:
                try:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()

    @property
    def environment(self) -> dict[str, str]:
        """What points clients at it."""
        url = f"http://127.0.0.1:{self.port}"
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "AKIAMADEUP",
            "AWS_SECRET_ACCESS_KEY": "made-up-secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        }
