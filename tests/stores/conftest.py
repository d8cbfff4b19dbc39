"""Remote stores of the test's own: real clients, and on 127.0.0.1 a control plane of Modal and an S3 service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.modal_loopback import ControlPlane


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    """A running control plane; the environment points the client, also a subprocess's, at it."""
    with ControlPlane(tmp_path / "modal") as plane:
        monkeypatch.setenv("MODAL_SERVER_URL", plane.url)
        monkeypatch.setenv("MODAL_TOKEN_ID", "ak-made-up")
        monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-made-up")
        monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("MODAL_IS_REMOTE", raising=False)
        yield plane


@pytest.fixture
def client(control: ControlPlane) -> Iterator[object]:
    """A client of the test's own, also where a store is opened without one: until it is closed."""
    import modal

    with ExitStack() as stack:
        client = modal.Client.from_credentials("ak-made-up", "as-made-up")
        stack.push(client)  # it is open: up to modal 1.6.3 a `with` opens it once more, which fails
        own = "_set_env_client" if hasattr(modal.Client, "_set_env_client") else "set_env_client"  # up to 1.6.3
        getattr(modal.Client, own)(client)  # modal's own would outlive its control plane
        yield client
