"""One Modal account for the tests of a module: their apps are deployed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.account import REPO, Account
from tests.modal_loopback import ControlPlane
from wanstore.testing.hub import LoopbackHub


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory, tiny_fp32: Path) -> Iterator[Account]:
    """A control plane, and a Hub with a tiny Wan 2.1."""
    folder = tmp_path_factory.mktemp("modal")
    with ControlPlane(folder / "control") as control, LoopbackHub(xet=folder / "content") as hub:
        hub.add_repo(REPO, tiny_fp32)
        control.containers.environment.update(
            HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="0", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=str(folder / "hf")
        )
        yield Account(control, hub)
