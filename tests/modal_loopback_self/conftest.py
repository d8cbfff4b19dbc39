"""A control plane with a small app, deployed by the unmodified command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest

from tests.modal_loopback import ControlPlane

APP = Path(__file__).with_name("app.py")


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, with the app."""
    with ControlPlane(tmp_path_factory.mktemp("modal")) as control:
        deployed = subprocess.run(
            [sys.executable, "-m", "modal", "deploy", str(APP)],
            env=os.environ
            | {"MODAL_SERVER_URL": control.url, "MODAL_TOKEN_ID": "ak-made-up", "MODAL_TOKEN_SECRET": "as-made-up"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        yield control


@pytest.fixture(scope="module")
def client(control: ControlPlane) -> Iterator[Any]:
    """A client in this process. The Modal of whoever runs the tests, if they have one, stays out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODAL_SERVER_URL", control.url)
        with modal.Client.from_credentials("ak-made-up", "as-made-up") as client:
            yield client
