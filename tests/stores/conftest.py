"""Remote stores of the test's own: real clients, and on 127.0.0.1 a control plane of Modal and an S3 service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # tests/ is no package that could be installed

from tests.modal_loopback import ControlPlane
from tests.stores.object.s3 import S3


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

    with modal.Client.from_credentials("ak-made-up", "as-made-up") as client:
        modal.Client._set_env_client(client)  # modal's own would outlive its control plane
        yield client


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A running service that wanstore's authors did not write; the environment points clients at it, as above."""
    with S3() as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANSTORE_CACHE", str(tmp_path / "cache"))
        yield service
