"""What survives a memory snapshot, by checkpointing and restoring real processes that hold real pipelines.

One process is frozen; every test restores a clone of it. A clone finds another store at the place where the frozen
process found its own, as a container does that mounts a Volume which has been written to since.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.snapshots.gvisor import Sandbox, SandboxError, why_not
from wanstore.testing.manifests import seal_as_is

NOTHING: Mapping[str, list[str]] = {"mappings": [], "files": [], "sockets": [], "threads": []}


@attrs.frozen
class Frozen:
    """A checkpoint of tests/snapshots/program.py, and what the program answered before it."""

    arguments: tuple[str, ...]
    place: Path
    """Where the program looks for its files: the mount point that a clone may see other files at."""
    image: Path
    answers: Mapping[str, Any]

    def clone(self, files: Path) -> Sandbox:
        return _sandbox(self.arguments, self.place, files, self.image)


def _sandbox(arguments: tuple[str, ...], place: Path, files: Path, image: Path | None = None) -> Sandbox:
    return Sandbox(
        [sys.executable, "-m", "tests.snapshots.program", *arguments],
        mounts={place: files},
        environment={"PYTHONPATH": str(Path(__file__).parents[2])},
        image=image,
    )


@contextmanager
def _frozen(folder: Path, kind: str, name: str, files: Path, questions: tuple[str, ...]) -> Iterator[Frozen]:
    """The program started on `name` in `files`, asked, and frozen into `folder` for the length of the block."""
    place = folder / "place"
    place.mkdir()
    arguments = (kind, str(place / name))
    with _sandbox(arguments, place, files) as sandbox:
        sandbox.hear("READY")
        answers = {question: sandbox.ask(question) for question in questions}
        sandbox.checkpoint(folder / "image")
    yield Frozen(arguments, place, folder / "image", answers)
    shutil.rmtree(folder / "image")  # hundreds of MB, which pytest would keep for three sessions


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    """Skips the module where there is no engine."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders with a sealed pipeline `wan`: what the program loads; another of the same size; and none."""
    from wanstore.testing.tiny_wan import make_tiny_wan

    folder = tmp_path_factory.mktemp("stores")
    loaded, other = (
        seal_as_is(make_tiny_wan(folder / state / "wan", dtype="float16", seed=seed))
        for seed, state in enumerate(("unchanged", "replaced"))
    )
    assert [file.size_bytes for file in loaded.files] == [file.size_bytes for file in other.files]
    assert loaded != other
    (folder / "deleted").mkdir()
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, stores: Mapping[str, Path]) -> Iterator[Frozen]:
    """A frozen process that has loaded the pipeline `wan`."""
    folder = tmp_path_factory.mktemp("pipeline")
    with _frozen(folder, "pipeline", "wan", stores["unchanged"], ("held", "clip resident")) as frozen:
        yield frozen


def test_a_loaded_pipeline_holds_nothing_that_a_snapshot_cannot_keep(pipeline: Frozen) -> None:
    """After `load` no file of the store is mapped or open; there is no socket, and no thread but the main one."""
    assert pipeline.answers["held"] == NOTHING


@pytest.mark.parametrize("state", ["deleted", "replaced"])
def test_a_resident_pipeline_needs_its_store_no_more(pipeline: Frozen, stores: Mapping[str, Path], state: str) -> None:
    """Whatever became of the store's files, the restored pipeline makes the clip that it made before, bit for bit."""
    with pipeline.clone(stores[state]) as clone:
        assert clone.ask("activate resident") == "ready"
        assert clone.ask("clip resident") == pipeline.answers["clip resident"]


def test_a_deferred_pipeline_reads_its_store_after_the_restore(pipeline: Frozen, stores: Mapping[str, Path]) -> None:
    """A skeleton that was frozen without weights makes the resident pipeline's clip, bit for bit, and holds no file."""
    with pipeline.clone(stores["unchanged"]) as clone:
        assert clone.ask("activate deferred") == "ready"
        assert clone.ask("clip deferred") == pipeline.answers["clip resident"]
        assert clone.ask("held") == NOTHING


@pytest.mark.parametrize(("state", "error"), [("deleted", "NotFoundError"), ("replaced", "ChangedError")])
def test_a_deferred_pipeline_refuses_another_store(
    pipeline: Frozen, stores: Mapping[str, Path], state: str, error: str
) -> None:
    """A skeleton takes the weights that it was made for, or none: the error says which folder is to blame."""
    with pipeline.clone(stores[state]) as clone:
        answer = clone.ask("activate deferred")
        assert answer.startswith(f"{error}: ")
        assert str(pipeline.place / "wan") in answer


def test_activate_parts_the_random_generators_of_clones(pipeline: Frozen, stores: Mapping[str, Path]) -> None:
    """Two clones of one snapshot draw the same numbers until they are activated, and different ones from then on."""
    with pipeline.clone(stores["unchanged"]) as one, pipeline.clone(stores["unchanged"]) as other:
        assert one.ask("draw") == other.ask("draw")
        for clone in (one, other):
            assert clone.ask("activate resident") == "ready"
        numbers, others = one.ask("draw"), other.ask("draw")
        assert [name for name in ("random", "numpy", "torch") if numbers[name] == others[name]] == []


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Frozen, Mapping[str, Path]]]:
    """The control: a frozen process with a tensor of ones mapped from a file, and files to find after the restore."""
    files = tmp_path_factory.mktemp("files")
    for state, value in (("unchanged", 1.0), ("replaced", 2.0)):
        (files / state).mkdir()
        save_file({"weight": np.full(4096, value, np.float32)}, files / state / "weights.safetensors")
    (files / "deleted").mkdir()
    folder = tmp_path_factory.mktemp("mapped")
    with _frozen(folder, "mapped", "weights.safetensors", files / "unchanged", ("held", "sum")) as frozen:
        yield frozen, {path.name: path for path in files.iterdir()}


def test_mapped_weights_change_with_their_file(mapped: tuple[Frozen, Mapping[str, Path]]) -> None:
    """The danger is real: a tensor that `safetensors` maps comes back with the values of the file that is there now."""
    frozen, files = mapped
    assert frozen.answers["sum"] == 4096
    assert frozen.answers["held"]["mappings"]
    with frozen.clone(files["replaced"]) as clone:
        assert clone.ask("sum") == 8192


def test_mapped_weights_need_their_file(mapped: tuple[Frozen, Mapping[str, Path]]) -> None:
    """The danger is real: with the mapped file gone, there is no restore."""
    frozen, files = mapped
    with (
        frozen.clone(files["deleted"]) as clone,
        pytest.raises(SandboxError, match=r"restoring container .* no such file"),
    ):
        clone.ask("sum")
