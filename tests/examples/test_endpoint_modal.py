"""examples/endpoint_modal.py: deployed by the unmodified command line, called through `modal.Cls.from_name`."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import modal
import pytest
from modal._runtime import asgi

from tests.examples.account import ROOT, Account
from tests.modal_loopback.container import Checkpoint
from wanstore.errors import NotFoundError
from wanstore.testing.manifests import seal_as_is
from wanstore.testing.tiny_wan import make_tiny_wan


@pytest.fixture(scope="module")
def ready_account(account: Account, tiny_fp16: Path) -> Account:
    """The Volume is as setup leaves it, with a tiny pipeline; of each function one container may run."""
    folder = account.control.volumes.create("anime-models").folder / "wan2.1-fp16"
    shutil.copytree(tiny_fp16, folder)
    seal_as_is(folder)
    account.control.containers.most = 1
    return account


@contextmanager
def deployed(account: Account, snapshot: str) -> Iterator[Any]:
    """The endpoint's `Generator`, by its name."""
    app = f"endpoint-{snapshot}"
    result = account.modal(
        "deploy", "examples/endpoint_modal.py", "--name", app, WANSTORE_DEVICE="cpu", WANSTORE_SNAPSHOT=snapshot
    )
    assert result.returncode == 0, result.stdout
    with account.client() as client:
        yield modal.Cls.from_name(app, "Generator", client=client)()


def frames_of(mp4: bytes) -> list[tuple[int, int]]:
    """Width and height of each frame: PyAV decodes all of them."""
    with av.open(io.BytesIO(mp4), "r") as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_a_restored_container_gets_through_a_rush(ready_account: Account) -> None:
    """Three requests at once to an app without a container; each is answered with a playable clip.

    Its snapshot was taken with no file of the Volume open or mapped.
    """
    wanted = [("720p/5s", True), ("720p/5s", False), ("480p/5s", True)]
    with deployed(ready_account, "cpu") as generator:
        calls = [generator.generate.spawn("a fox", preset, may_degrade=may) for preset, may in wanted]
        first, second, last = [call.get() for call in calls]
    assert [frames_of(made["mp4"]) for made in (first, second, last)] == [[(32, 32)] * 5] * 3
    assert ready_account.control.containers.checkpoints[-1] == Checkpoint("Generator.*", ())
    # Two that wait are six minutes by the first guess, which is more than the policy lets pass.
    assert (first["preset"], first["degraded"]) == ("480p/3s", True) and "about 360 s long" in first["reason"]
    assert (second["preset"], second["degraded"]) == ("720p/5s", False) and "refuses" in second["reason"]
    # Nobody waits behind the last one: degraded mode has ended by itself.
    assert (last["preset"], last["degraded"], last["reason"]) == ("480p/5s", False, "")


def test_a_snapshot_with_weights_works_as_well(ready_account: Account) -> None:
    """The form for GPU snapshots, with the CPU in the GPU's place; a wrong preset is told with the right ones."""
    with deployed(ready_account, "gpu") as generator:
        assert frames_of(generator.generate.remote("a fox")["mp4"]) == [(32, 32)] * 5
        with pytest.raises(NotFoundError, match="480p/3s"):
            generator.generate.remote("a fox", "8k/1h")
    assert ready_account.control.containers.checkpoints[-1] == Checkpoint("Generator.*", ())


def test_a_pipeline_that_was_replaced_since_the_snapshot_is_loaded_anew(
    tiny_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The skeleton in the snapshot does not fit it; the container starts all the same."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("WANSTORE_MODAL_MOUNTS", f"anime-models={tmp_path}")
    endpoint = import_module("endpoint_modal")
    monkeypatch.setattr(endpoint, "DEVICE", "cpu")
    steps = vars(endpoint.Generator._get_user_cls())
    generator = SimpleNamespace()
    folder = tmp_path / "wan2.1-fp16"
    shutil.copytree(tiny_fp16, folder)
    seal_as_is(folder)
    steps["prepare"]._get_raw_f()(generator)
    skeleton = generator.pipe
    shutil.rmtree(folder)
    seal_as_is(make_tiny_wan(folder, dtype="float16", seed=1))
    steps["finish"]._get_raw_f()(generator)
    assert generator.pipe is not skeleton
    assert not any(parameter.is_meta for parameter in generator.pipe.transformer.parameters())


IN_THE_WEB_IMAGE = """
import sys
from importlib import import_module
from types import SimpleNamespace

import modal

for package in sys.argv[1:]:
    import_module(package)
present = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
present |= {"wanstore", "modal_common", "endpoint_modal"}

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in present:
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

sys.meta_path.insert(0, Absent)
import endpoint_modal

made = {"mp4": b"mp4", "preset": "480p/3s", "degraded": False, "reason": "", "seconds": 2.5}
generator = SimpleNamespace(generate=SimpleNamespace(remote=lambda **asked: made))
endpoint_modal.Generator = lambda: generator
print(endpoint_modal.clip._raw_f_({"prompt": "a fox"}).body.decode())
"""
"""The web function in a process that has its image's packages, Modal's client, and nothing else to import."""


class TestWeb:
    """The web function, behind the very wrapper that Modal puts around it; nobody serves it on the loopback."""

    @pytest.fixture
    def http(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A client of the app. What it calls is written down, and answered as a degraded clip."""
        testclient = pytest.importorskip("fastapi.testclient", reason="fastapi is what the web function's image has")
        monkeypatch.syspath_prepend(ROOT / "examples")
        endpoint = import_module("endpoint_modal")
        made = {"mp4": b"mp4", "preset": "480p/3s", "degraded": True, "reason": "the queue is long", "seconds": 2.5}
        generator = SimpleNamespace(generate=SimpleNamespace(remote=lambda **asked: made | {"reason": str(asked)}))
        monkeypatch.setattr(endpoint, "Generator", lambda: generator)
        return testclient.TestClient(asgi.magic_fastapi_app(endpoint.clip._raw_f_, "POST", False))

    def test_it_answers_with_the_clip_and_says_how_it_was_made(self, http: Any) -> None:
        """In headers; the arguments are those of `generate`."""
        answer = http.post("/", json={"prompt": "a fox", "may_degrade": False})
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"mp4", "video/mp4")
        assert answer.headers["x-wanstore-degraded"] == "True"
        assert answer.headers["x-wanstore-reason"] == str(
            {"prompt": "a fox", "may_degrade": False, "preset": "480p/3s"}
        )

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ({}, "send a prompt"),
            ({"prompt": "a", "steps": 1}, "send a prompt"),
            ({"prompt": "a", "preset": "8k"}, "8k"),
        ],
    )
    def test_what_it_does_not_know_costs_no_gpu(self, http: Any, request_: dict[str, Any], message: str) -> None:
        """Status 400, with what would do."""
        answer = http.post("/", json=request_)
        assert answer.status_code == 400 and message in answer.json()["detail"]

    def test_it_needs_no_more_than_its_image_has(self, http: Any) -> None:
        """Not what wanstore needs elsewhere: cattrs, torch, diffusers, click and others."""
        packages = [re.split(r"\W", package)[0] for package in import_module("endpoint_modal").WEB_PACKAGES]
        run = subprocess.run(
            [sys.executable, "-c", IN_THE_WEB_IMAGE, *packages],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])},
        )
        assert (run.returncode, run.stdout) == (0, "mp4\n"), run.stderr
