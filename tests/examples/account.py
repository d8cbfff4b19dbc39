"""A Modal account and a Hub of the tests' own, and the unmodified command line that uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import modal

from tests.modal_loopback import ControlPlane
from tests.modal_loopback.container import Container
from wanstore.manifest import Manifest
from wanstore.stores.modal._mount import MountedStore
from wanstore.testing.hub import LoopbackHub

ROOT = Path(__file__).parents[2]
ONLY_MODAL = Path(__file__).with_name("only_modal")
T = TypeVar("T")

REPO = "Wan-AI/Tiny"


class NoVolume:
    """Looks at a Volume's own files, where nothing has to be committed or reloaded."""

    def commit(self) -> None: ...
    def reload(self) -> None: ...


@attrs.frozen
class Account:
    """`control` is the control plane, `hub` the Hub that containers reach."""

    control: ControlPlane
    hub: LoopbackHub

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """`modal ARGUMENTS`, from the root of the checkout, on a machine that has no other package than modal.

        Its two outputs are one.
        """
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MODAL_", "WANSTORE_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "modal", *arguments],
            env={**environment, **self.credentials(), "PYTHONPATH": str(ONLY_MODAL), **variables},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def python(self, program: str) -> subprocess.CompletedProcess[str]:
        """A Python program on such a machine."""
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **self.credentials(), "PYTHONPATH": str(ONLY_MODAL)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def modal(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The same, and its end: status and output."""
        process = self.start(*arguments, **variables)
        output, _ = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def credentials(self) -> Mapping[str, str]:
        return {
            "MODAL_SERVER_URL": self.control.url,
            "MODAL_TOKEN_ID": "ak-made-up",
            "MODAL_TOKEN_SECRET": "as-made-up",
        }

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client in this process."""
        saved = os.environ.get("MODAL_SERVER_URL")
        os.environ["MODAL_SERVER_URL"] = self.control.url
        try:
            with modal.Client.from_credentials("ak-made-up", "as-made-up") as client:
                yield client
        finally:
            os.environ.pop("MODAL_SERVER_URL") if saved is None else os.environ.update(MODAL_SERVER_URL=saved)

    def store(self, volume: str) -> MountedStore:
        """The store on a Volume as it is committed."""
        return MountedStore(f"modal://{volume}", self.control.volumes.folder(volume), NoVolume(), None)

    def stored(self, volume: str) -> list[Manifest]:
        """What is sealed there; nothing while there is no such Volume."""
        return list(self.store(volume).list().pipelines) if self.control.volumes.named(volume) else []

    def running(self, function: str) -> Container:
        """The container that is at an input of `function`, as soon as there is one."""
        return wait_for(
            lambda: next((c for c in self.control.containers.alive if c.name == function and c.at_work()), None)
        )


def wait_for(ask: Callable[[], T | None], seconds: float = 120) -> T:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return answer


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, and what the program said."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=120)[0]
