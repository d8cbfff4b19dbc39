"""examples/endpoint_modal.py: deployed by the unmodified command line, called through `modal.Cls.from_name`."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import av
import modal
import pytest

from tests.examples.account import Account
from tests.modal_loopback.container import Checkpoint
from wanstore.errors import NotFoundError
from wanstore.testing.sealing import seal_as_is


@attrs.frozen
class Answers:
    """What a freshly deployed endpoint said to a rush, and the snapshot of its container."""

    made: list[dict[str, Any]]
    checkpoint: Checkpoint


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


@pytest.fixture(scope="module")
def rush(ready_account: Account) -> Answers:
    """Three requests at once to an app that has no container yet."""
    wanted = [("720p/5s", True), ("720p/5s", False), ("480p/5s", True)]
    with deployed(ready_account, "cpu") as generator:
        calls = [generator.generate.spawn("a fox", preset, may_degrade=may) for preset, may in wanted]
        return Answers([call.get() for call in calls], ready_account.control.containers.checkpoints[-1])


def frames_of(mp4: bytes) -> list[tuple[int, int]]:
    """Width and height of each frame: PyAV decodes all of them."""
    with av.open(io.BytesIO(mp4), "r") as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_a_restored_container_returns_playable_clips(rush: Answers) -> None:
    """Its snapshot was taken with no file of the Volume open or mapped."""
    assert [frames_of(made["mp4"]) for made in rush.made] == [[(32, 32)] * 5] * 3
    assert rush.checkpoint == Checkpoint("Generator.*", ())


def test_a_long_queue_gets_the_safe_preset_and_is_told(rush: Answers) -> None:
    """Two that wait are six minutes by the first guess: more than the policy lets pass."""
    made = rush.made[0]
    assert (made["preset"], made["degraded"]) == ("480p/3s", True) and "about 360 s long" in made["reason"]


def test_a_request_may_refuse_another_preset(rush: Answers) -> None:
    """It gets its own, and is told that the queue is long."""
    made = rush.made[1]
    assert (made["preset"], made["degraded"]) == ("720p/5s", False) and "refuses" in made["reason"]


def test_with_nobody_waiting_everybody_gets_what_they_ask_for(rush: Answers) -> None:
    """Degraded mode ends by itself."""
    made = rush.made[2]
    assert (made["preset"], made["degraded"], made["reason"]) == ("480p/5s", False, "")


def test_a_snapshot_with_weights_works_as_well(ready_account: Account) -> None:
    """The form for GPU snapshots, with the CPU in the GPU's place; a wrong preset is told with the right ones."""
    with deployed(ready_account, "gpu") as generator:
        assert frames_of(generator.generate.remote("a fox")["mp4"]) == [(32, 32)] * 5
        with pytest.raises(NotFoundError, match="480p/3s"):
            generator.generate.remote("a fox", "8k/1h")
    assert ready_account.control.containers.checkpoints[-1] == Checkpoint("Generator.*", ())
