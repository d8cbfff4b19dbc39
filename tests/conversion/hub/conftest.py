"""The hostile Hub as a fixture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from tests.conversion.hub.hostile_hub import HostileHub


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileHub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            hub.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            with suppress(OSError):  # the client hangs up
                for piece in hub.answer(self.path):
                    self.connection.sendall(piece)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = HostileHub(f"http://127.0.0.1:{server.server_port}", threading.Event())
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def new_session() -> Iterator[None]:
    """The client makes its session anew in the test, from the test's environment, and again after it."""
    close_session()
    yield
    close_session()
