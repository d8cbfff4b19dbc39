"""A load whose weights come straight from where they are stored."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

import wanstore
from wanstore.errors import DamagedError, NotSupportedError, UnreachableError
from wanstore.interfaces import Streamed
from wanstore.memory import MemoryPlan
from wanstore.stores._streamed import streamed
from wanstore.stores.local import LocalStore

WEIGHTS = "text_encoder/model.safetensors"


class Distant(LocalStore):
    """A store whose files can be read in ranges alone."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[tuple[str, int, int]] = []
        self.range: Callable[[str, int, int], bytes] = self.stored_range

    def stored_range(self, path: str, start: int, stop: int) -> bytes:
        with (self.root / "tiny" / path).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def streamed(self, name: str) -> AbstractContextManager[Streamed]:
        def read(path: str, start: int, stop: int) -> memoryview:
            self.asked.append((path, start, stop))
            return memoryview(self.range(path, start, stop))

        return streamed(read, "far://away/tiny", self.manifest(name))


@pytest.fixture
def store(tiny_sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distant:
    """It holds `tiny`. Temporary folders are made below the test's own."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return Distant(tiny_sealed.parent)


def load(store: Distant, device: str = "cpu", **options: Any) -> Any:
    return wanstore.load("tiny", store=store, device=device, cache=False, **options)


def tensors(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name in ("text_encoder", "transformer", "vae")
        for key, value in getattr(pipe, name).state_dict().items()
    }


def test_it_gives_the_same_pipeline_and_leaves_nothing(store: Distant) -> None:
    """Each byte of a weight file is asked for once, and none is on the disk at any time."""
    threads = threading.active_count()
    pipe = load(store)
    assert threading.active_count() == threads and not [*Path(tempfile.gettempdir()).iterdir()]
    local = wanstore.load("tiny", store=store.root, device="cpu")
    ours, theirs = tensors(pipe), tensors(local)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    for entry in store.manifest("tiny").files:
        spans = sorted((start, stop) for path, start, stop in store.asked if path == entry.path)
        read = sum(stop - start for start, stop in spans)
        assert read >= entry.size_bytes and spans[-1][1] == entry.size_bytes, entry.path
    prompts = ["a  fox\n\U0001f98a"]
    assert pipe.tokenizer(prompts).input_ids == local.tokenizer(prompts).input_ids


def test_it_says_where_the_pipeline_comes_from(store: Distant) -> None:
    """Not a folder that is gone."""
    pipe = load(store)
    assert pipe.load_report.folder == pipe.config._name_or_path == "far://away/tiny"
    assert pipe.tokenizer.name_or_path == "far://away/tiny/tokenizer"
    assert pipe.vae.config._name_or_path == "far://away/tiny/vae"
    assert pipe.load_report.transfer.streamed and pipe.load_report.transfer.bound_by in ("network", "preparation")


@pytest.mark.parametrize("path", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_wrong_bytes_are_noticed_on_the_way(store: Distant, path: str) -> None:
    """Of weights, with which nobody would get to work."""
    size = (store.root / "tiny" / path).stat().st_size

    def wrong(asked: str, start: int, stop: int) -> bytes:
        data = bytearray(store.stored_range(asked, start, stop))
        if asked == path and stop == size:
            data[-1] ^= 1
        return bytes(data)

    store.range = wrong
    with pytest.raises(DamagedError, match=f"{path} in far://away/tiny is not what its manifest says"):
        load(store)
    assert not [*Path(tempfile.gettempdir()).iterdir()]


def test_a_header_that_is_wrong_is_noticed_before_weights_move(store: Distant) -> None:
    def wrong(path: str, start: int, stop: int) -> bytes:
        data = store.stored_range(path, start, stop)
        return b"\xff" * 8 + data[8:] if path == WEIGHTS and start == 0 else data

    store.range = wrong
    with pytest.raises(DamagedError, match=f"{WEIGHTS}: its header claims"):
        load(store)


@pytest.mark.parametrize(
    ("error", "told", "text"),
    [
        (FileNotFoundError(), DamagedError, f"{WEIGHTS} is missing in far://away/tiny"),
        (UnreachableError("the store is gone"), UnreachableError, "the store is gone"),
    ],
)
def test_an_error_on_the_way_is_told_and_nobody_waits_on(
    store: Distant, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception], text: str
) -> None:
    """Though other threads wait for their turn after the range that does not come."""
    monkeypatch.setattr("wanstore.transfer._layout.CHUNK_BYTES", 4096)
    threads = threading.active_count()

    def fail(path: str, start: int, stop: int) -> bytes:
        if path == WEIGHTS and start > 0:
            raise error
        return store.stored_range(path, start, stop)

    store.range = fail
    with pytest.raises(told, match=text):
        load(store)
    assert threading.active_count() == threads


@pytest.mark.gpu
def test_a_gpu_gets_the_same(store: Distant) -> None:
    ours, theirs = tensors(load(store, "cuda")), tensors(load(store))
    assert all(torch.equal(ours[name].cpu(), value) and ours[name].is_cuda for name, value in theirs.items())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_offloaded_stays_in_host_memory(store: Distant, device: str) -> None:
    """There is no folder to read it from again. The clip is the same."""
    plan = MemoryPlan(offloaded=("text_encoder", "vae"))
    clips = []
    for pipe in (load(store, device, memory=plan), wanstore.load("tiny", store=store.root, device=device, memory=plan)):
        for _ in range(2):
            generator = torch.Generator().manual_seed(0)
            clips.append(
                pipe("a fox", height=32, width=32, num_frames=5, num_inference_steps=2, generator=generator).frames[0]
            )
    assert all((clip == clips[0]).all() for clip in clips)


def test_deferred_weights_need_a_folder(store: Distant) -> None:
    with pytest.raises(NotSupportedError, match="Deferred weights are read from a folder"):
        wanstore.load("tiny", store=store, weights="deferred", cache=False)


def test_a_store_that_has_no_such_way_gives_its_folder(tiny_sealed: Path) -> None:
    """A local one makes no copy anyway."""
    pipe = wanstore.load(tiny_sealed, device="cpu", cache=False)
    assert pipe.load_report.folder == str(tiny_sealed)
