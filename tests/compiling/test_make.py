"""Functions are made in a process of their own, tried in another, and sealed beside the pipeline, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import wanstore
from tests.conftest import SMALL
from wanstore._files import hash_file
from wanstore._workers import Workers
from wanstore.building import _block_functions
from wanstore.building._artifacts import file_name, shape_of
from wanstore.building._block_functions import BlockFunctions
from wanstore.compiling import _make, _worker
from wanstore.compiling._worker import Job
from wanstore.errors import NotSupportedError
from wanstore.interfaces import Quiet
from wanstore.manifest import MANIFEST_NAME, FileEntry, dump_manifest, read_manifest
from wanstore.presets import Preset

PRESET = Preset("small", **SMALL)
WIDE = attrs.evolve(PRESET, name="wide", width=64)


def compile_for(store: Path, *presets: Preset, **how: Any) -> Any:
    return wanstore.compile_blocks("w", store=store, presets=presets, device="cpu", **how)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Workers]:
    with Workers(_make._WORKER) as workers:
        yield workers


@pytest.fixture
def imports_done(prepared: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever compiles finds torch's compiler imported."""
    monkeypatch.setattr(_make, "Workers", lambda _: nullcontext(prepared))


def functions_folder(store: Path) -> Path:
    (folder,) = store.glob("w.compiled-*")
    return folder


def sizes_of(pipe: Any) -> dict[Any, list[int]]:
    """The tokens that each function's guards let pass, of some."""

    def passes(function: Any, tokens: int) -> bool:
        block, half = pipe.transformer.blocks[0], {"dtype": torch.float16}
        rotary = (torch.zeros(1, tokens, 1, 32), torch.zeros(1, tokens, 1, 32))
        given = (torch.zeros(1, tokens, 128, **half), torch.zeros(1, 512, 128, **half), torch.zeros(1, 6, 128), rotary)  # type: ignore[call-overload]
        return any(
            function.guard_check(block, *given[:2], given[2].to(dtype), rotary)
            for dtype in (torch.float16, torch.float32)
        )

    with torch.no_grad():
        return {
            shape: [tokens for tokens in (4, 8, 16, 32, 64) if passes(functions[0], tokens)]
            for shape, functions in pipe._functions._functions.items()
        }


def test_they_lie_sealed_beside_the_pipeline(compiled_store: Path) -> None:
    """The manifest says for what, and the store finds them whole."""
    manifest = read_manifest(functions_folder(compiled_store))
    assert manifest
    assert [entry.path for entry in manifest.files] == ["1x8.function"]
    assert (manifest.source.kind, manifest.source.location) == ("pipeline", "w")
    assert {"device", "architecture", "python", "torch", "diffusers", "dtype", "attention", "transformer"} <= set(
        manifest.conversion.options
    )
    assert wanstore.open_store(compiled_store).verify(manifest.name).ok


@pytest.mark.usefixtures("imports_done")
def test_what_is_there_is_not_made_again_and_another_size_is_added(compiled_copy: Path) -> None:
    """Nor is it lost."""
    before = (functions_folder(compiled_copy) / "1x8.function").read_bytes()
    report = compile_for(compiled_copy, PRESET, WIDE)
    assert [(one.preset, one.status) for one in report.presets] == [("small", "kept"), ("wide", "made")]
    assert report.presets[1].seconds > 0 and 0 < report.presets[1].difference < _worker.LARGEST_DIFFERENCE
    folder = functions_folder(compiled_copy)
    assert folder.name == report.folder and (folder / "1x8.function").read_bytes() == before
    assert wanstore.open_store(compiled_copy).verify(folder.name).ok
    pipe: Any = wanstore.load("w", store=compiled_copy, device="cpu", compile="cached")
    assert pipe.load_report.compiled.shapes == ("1x8", "1x16")
    assert [guarded for _, guarded in sorted(sizes_of(pipe).items())] == [[8], [16]], "each is for one size alone"


def test_what_is_damaged_is_made_again_and_the_rest_is_kept(
    compiled_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So does a run for other sizes, and one that makes some again. No worker runs here."""
    folder = functions_folder(compiled_copy)
    (folder / "1x24.function").write_bytes(b"another")
    manifest = read_manifest(folder)
    assert manifest
    entries = (*manifest.files, FileEntry("1x24.function", 7, hash_file(folder / "1x24.function")))
    (folder / MANIFEST_NAME).write_bytes(dump_manifest(attrs.evolve(manifest, files=entries)))
    (folder / "1x8.function").write_bytes(b"damaged")
    store, run = wanstore.open_store(compiled_copy), _make._Run(Job("describe", "", (), ""), Workers(""), Quiet())
    run.made_for = manifest.conversion.options
    assert [
        one.name for one in _make._missing(store, "w", run, [PRESET, attrs.evolve(PRESET, name="24", width=96)])
    ] == ["small"]
    assert _make._kept(store, "w", run.made_for) == {(1, 24): b"another"}
    assert "1x8.function was altered" in caplog.text


def test_arguments_that_cannot_be_are_refused_at_once(compiled_store: Path) -> None:
    """Before a process is started."""
    for wrong, told in (
        ({"presets": []}, "Name some"), ({"memory": "little"}, "Choose auto"),
        ({"dtype": {"vae": "int8"}}, "Choose float16"),
    ):  # fmt: skip
        with pytest.raises(NotSupportedError, match=told):
            wanstore.compile_blocks("w", **{"store": compiled_store, "presets": [PRESET], "device": "cpu", **wrong})  # type: ignore[arg-type]


@pytest.mark.usefixtures("imports_done")
def test_an_attention_backend_that_there_is_not_is_refused(compiled_store: Path) -> None:
    """With those that there are."""
    with pytest.raises(wanstore.WanstoreError, match="no attention backend 'nonsense'"):
        compile_for(compiled_store, PRESET, attention="nonsense")


def test_a_process_that_dies_takes_its_preset_along_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a function that crashes when it is loaded would, in production."""
    monkeypatch.setattr(_make, "_WORKER", "tests.compiling.crashing_worker")
    presets = [attrs.evolve(PRESET, name=name, width=16 * (at + 2)) for at, name in enumerate(
        ("first", "deadly", "deadly to try", "last")
    )]  # fmt: skip
    with Workers(_make._WORKER) as workers:
        run = _make._Run(Job("describe", "", tuple(presets), ""), workers, Quiet())
        run.do("make", presets)
        run.do("try", run.made)
    found = {preset.name: run.outcome(preset) for preset in presets}
    assert {name: one.reason for name, one in found.items() if one.status == "failed"} == {
        "deadly": "killed by SIGSEGV", "deadly to try": "killed by SIGKILL"
    }  # fmt: skip
    assert [one.preset for one in found.values() if one.status == "made"] == ["first", "last"]


class Function:
    """In place of a compiled one: whatever it is told."""

    def __init__(self, result: Any = torch.clone, *, fits: bool = True) -> None:
        self._result = result
        self._fits = fits

    def guard_check(self, *_: Any) -> bool:
        return self._fits

    def fn(self, _block: Any, given: torch.Tensor, *_: Any) -> torch.Tensor:
        result: torch.Tensor = self._result(given)
        return result


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (Function(torch.zeros_like), "changes a latent by"),
        (Function(lambda given: given * torch.nan), "changes a latent by nan|Two runs of it differ"),
        (Function(torch.randn_like), "Two runs of it differ"),
        (Function(fits=False), "do not pass its guards"),
    ],
)
def test_a_function_that_is_not_to_be_trusted_is_refused(
    tiny_sealed: Path, monkeypatch: pytest.MonkeyPatch, function: Function, reason: str
) -> None:
    """Where it changes clips, differs from run to run, or would never be used."""
    monkeypatch.setattr(_block_functions, "load_function", lambda *_: function)
    pipe = wanstore.load(tiny_sealed, device="cpu")
    functions = BlockFunctions({})
    functions.attach(pipe.transformer)
    with pytest.raises(NotSupportedError, match=reason):
        _worker._difference(pipe, PRESET, functions, b"")


def test_a_pipeline_under_another_name_has_none(compiled_copy: Path) -> None:
    """Not even one whose name goes on as the other's does."""
    shutil.copytree(compiled_copy / "w", compiled_copy / "w.compiled")
    pipe = wanstore.load("w.compiled", store=compiled_copy, device="cpu", compile="cached")
    assert pipe.load_report.compiled and pipe.load_report.compiled.reason == "none are stored"


def test_a_name_that_is_none_is_another_file() -> None:
    """Whatever a manifest lists."""
    assert shape_of("12x345.function") == (12, 345)
    for name in (
        "x8.function",
        "1x.function",
        "0x8.function",
        "1x8",
        "1x8.function.txt",
        "-1x8.function",
        "１x8.function",
    ):
        assert shape_of(name) is None


def test_files_are_named_by_what_the_transformer_sees() -> None:
    """Upright clips are the same to it."""
    upright = attrs.evolve(WIDE, width=32, height=64)
    assert file_name(WIDE.clip.shape) == file_name(upright.clip.shape) == "1x16.function"
