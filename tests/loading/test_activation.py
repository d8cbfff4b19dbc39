"""`activate`, the second half of a load: weights come from where they are, once, and only if they are the same."""

from __future__ import annotations

import logging
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from wanstore import activate
from wanstore.building import _check
from wanstore.errors import ChangedError, DamagedError, NotFoundError, NotSupportedError
from wanstore.loading import _load
from wanstore.loading._load import load_folder as load
from wanstore.manifest import MANIFEST_NAME, dump_manifest, read_manifest
from wanstore.testing.manifests import seal_as_is
from wanstore.testing.tiny_wan import make_tiny_wan

MODELS = ("text_encoder", "transformer", "vae")
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


def assert_same_weights(ours: Any, theirs: Any) -> None:
    """Bit for bit, by name; buffers too."""
    for name in MODELS:
        held, wanted = getattr(ours, name), getattr(theirs, name)
        for kind in ("state_dict", "named_buffers"):
            for key, tensor in dict(getattr(wanted, kind)()).items():
                moved = dict(getattr(held, kind)())[key]
                assert moved.dtype == tensor.dtype
                assert torch.equal(moved.cpu(), tensor.cpu()), (name, key)
    assert ours.text_encoder.encoder.embed_tokens.weight is ours.text_encoder.shared.weight


def note(folder: Path, **notes: str) -> None:
    """Seal the folder anew, with notes."""
    manifest = read_manifest(folder)
    assert manifest
    (folder / MANIFEST_NAME).write_bytes(dump_manifest(attrs.evolve(manifest, notes=notes)))


# --- deferred weights


def test_a_deferred_pipeline_is_a_skeleton(tiny_sealed: Path) -> None:
    """Everything but weights: no parameter takes memory, buffers and tokenizer are ready."""
    pipe = load(tiny_sealed, weights="deferred")
    for name in MODELS:
        assert all(parameter.is_meta for parameter in getattr(pipe, name).parameters())
        assert not any(buffer.is_meta for buffer in getattr(pipe, name).buffers())
    assert pipe.tokenizer("a cat").input_ids
    assert (pipe.load_report.size_bytes, pipe.load_report.transfer) == (0, None)


def test_activating_it_gives_what_a_plain_load_gives(tiny_sealed: Path) -> None:
    """Every bit, also where float32 is kept; with a report of its own."""
    pipe = load(tiny_sealed, weights="deferred")
    assert activate(pipe, "cpu") is pipe
    assert_same_weights(pipe, load(tiny_sealed, device="cpu"))
    assert not any(parameter.requires_grad is False for parameter in pipe.transformer.parameters())
    assert pipe.activation_report
    assert pipe.activation_report.size_bytes == pipe.activation_report.phase("weights").size_bytes > 1_000_000


def test_activating_twice_reads_once(tiny_sealed: Path) -> None:
    """The second time there is nothing to do: the files may be gone."""
    pipe = activate(load(tiny_sealed, weights="deferred"), "cpu")
    before = pipe.transformer.proj_out.weight
    shutil.rmtree(tiny_sealed)
    assert activate(pipe, "cpu").transformer.proj_out.weight is before


def test_two_threads_activate_it_once(tiny_sealed: Path) -> None:
    """The second one waits for the first."""
    pipe = load(tiny_sealed, weights="deferred")
    threads = [threading.Thread(target=activate, args=(pipe, "cpu")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_weights(pipe, load(tiny_sealed, device="cpu"))


def test_another_pipeline_in_the_same_place_is_refused(tiny_sealed: Path) -> None:
    """A sealed one of the same shape: only its manifest tells that the weights are others."""
    pipe = load(tiny_sealed, weights="deferred")
    shutil.rmtree(tiny_sealed)
    seal_as_is(make_tiny_wan(tiny_sealed, dtype="float16", seed=5))
    with pytest.raises(ChangedError, match="another pipeline"):
        activate(pipe, "cpu")
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())


def test_a_folder_that_is_gone_is_refused(tiny_sealed: Path) -> None:
    """With what to do."""
    pipe = load(tiny_sealed, weights="deferred")
    shutil.rmtree(tiny_sealed)
    with pytest.raises(NotFoundError, match=r"is gone.*Load the pipeline again"):
        activate(pipe, "cpu")


def test_after_a_failed_activation_another_one_works(tiny_sealed: Path) -> None:
    """The pipeline is as it was: still a skeleton."""
    pipe, path = load(tiny_sealed, weights="deferred"), tiny_sealed / VAE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(DamagedError, match=VAE_FILE):
        activate(pipe, "cpu")
    path.write_bytes(whole)
    assert_same_weights(activate(pipe, "cpu"), load(tiny_sealed, device="cpu"))


@pytest.mark.parametrize("change", ["replaced", "deleted"])
@pytest.mark.parametrize("moment", ["open_weights", "_assemble"])
def test_a_load_that_fails_by_a_change_of_the_folder_says_so(
    tiny_sealed: Path, monkeypatch: pytest.MonkeyPatch, change: str, moment: str
) -> None:
    """Not that it is damaged: making it again would be hours for nothing."""
    plain = getattr(_load, moment)

    def changed_before(*arguments: Any) -> Any:
        shutil.rmtree(tiny_sealed)
        if change == "replaced":
            seal_as_is(make_tiny_wan(tiny_sealed, dtype="float16", seed=5))
            (tiny_sealed / "tokenizer" / "tokenizer.json").unlink()
            (tiny_sealed / VAE_FILE).unlink()
            seal_as_is(tiny_sealed)
        return plain(*arguments)

    monkeypatch.setattr(_load, moment, changed_before)
    with pytest.raises(ChangedError if change == "replaced" else NotFoundError):
        load(tiny_sealed, device="cpu")


def test_a_load_beside_a_deletion_and_the_same_setup_again_says_so(
    tiny_sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is the same by the time that somebody asks why a file was missing; the folder is not."""
    plain = _load._assemble

    def gone_meanwhile(*arguments: Any) -> Any:
        again = Path(shutil.copytree(tiny_sealed, tiny_sealed.with_name("again")))
        shutil.rmtree(tiny_sealed)
        try:
            return plain(*arguments)
        finally:
            again.rename(tiny_sealed)

    monkeypatch.setattr(_load, "_assemble", gone_meanwhile)
    with pytest.raises(ChangedError, match="was replaced during the load"):
        load(tiny_sealed, device="cpu")


def test_a_check_that_meets_a_replacement_goes_on_with_the_new_pipeline(
    tiny_sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old manifest beside the new files is no damage."""
    plain = _check._wrong_files
    replaced: list[Any] = []

    def replaced_before(folder: Path, manifest: Any) -> Any:
        if not replaced:
            shutil.rmtree(tiny_sealed)
            replaced.append(seal_as_is(make_tiny_wan(tiny_sealed, dtype="float16", shard_bytes=100_000)))
        return plain(folder, manifest)

    monkeypatch.setattr(_check, "_wrong_files", replaced_before)
    pipe = load(tiny_sealed, device="cpu")
    assert pipe._origin.manifest == replaced[0]


def test_damage_is_still_called_damage(tiny_sealed: Path) -> None:
    """Nothing took the folder's place."""
    (tiny_sealed / VAE_FILE).write_bytes(b"")
    with pytest.raises(DamagedError, match="has 0 bytes"):
        load(tiny_sealed, device="cpu")


def test_a_pipeline_swapped_in_mid_load_is_refused(tiny_sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are whole, the manifest is another: parts of both could have been read."""
    from wanstore.building._weight_transfer import WeightTransfer

    tensors = WeightTransfer.tensors

    def swap(transfer: Any) -> Any:
        note(tiny_sealed, swapped="yes")
        return tensors(transfer)

    monkeypatch.setattr(WeightTransfer, "tensors", swap)
    with pytest.raises(ChangedError):
        load(tiny_sealed, device="cpu")


def test_deferred_weights_are_on_no_device(tiny_sealed: Path) -> None:
    """Asking for one already is a misunderstanding."""
    with pytest.raises(NotSupportedError, match="Name the device to activate"):
        load(tiny_sealed, weights="deferred", device="cuda")


def test_weights_are_resident_or_deferred(tiny_sealed: Path) -> None:
    """A third word is a mistake, not another way to spell one of them."""
    with pytest.raises(NotSupportedError, match="resident or deferred"):
        load(tiny_sealed, weights="lazy")  # type: ignore[arg-type]


def test_an_unsealed_folder_may_be_deferred_too(tiny_copy: Path) -> None:
    """There is no manifest to hold it to; the headers still have to fit."""
    pipe = activate(load(tiny_copy, weights="deferred", sealed=False), "cpu")
    assert_same_weights(pipe, load(tiny_copy, device="cpu", sealed=False))


# --- weights in memory


def test_a_resident_pipeline_stays_where_it_is(tiny_sealed: Path) -> None:
    """On the CPU there is nothing to bring; the files are not needed any more."""
    pipe = load(tiny_sealed, device="cpu")
    shutil.rmtree(tiny_sealed)
    activate(pipe, "cpu")
    assert pipe.activation_report and pipe.activation_report.size_bytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["resident", "deferred"])
def test_on_a_gpu_every_bit_is_the_cpus(tiny_sealed: Path, weights: Any) -> None:
    """Whether they come from memory or from files."""
    pipe = activate(load(tiny_sealed, device="cpu", weights=weights), "cuda")
    assert pipe.device.type == "cuda"
    assert all(buffer.is_cuda for name in MODELS for buffer in getattr(pipe, name).buffers())
    assert_same_weights(pipe, load(tiny_sealed, device="cpu"))


def test_a_pipeline_of_another_loader_is_refused(tiny_copy: Path) -> None:
    """wanstore does not know where its weights came from."""
    from diffusers import WanPipeline

    with pytest.raises(NotSupportedError, match=r"wanstore\.load"):
        activate(WanPipeline.from_pretrained(str(tiny_copy)), "cpu")


# --- what must differ between clones


def test_random_generators_get_new_seeds(tiny_sealed: Path) -> None:
    """Each time: Python's, numpy's and torch's."""
    pipe = load(tiny_sealed, device="cpu")

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    draws = []
    for _ in range(2):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        activate(pipe, "cpu")
        draws.append(draw())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    draws.append(draw())
    for kind in zip(*draws, strict=True):
        assert len(set(kind)) == 3


def test_a_load_leaves_random_generators_alone(tiny_sealed: Path) -> None:
    """Only a restored clone needs new seeds."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    load(tiny_sealed, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_log_has_one_line_for_each_half(tiny_sealed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What, where, how long, and what bound it. Whoever asks for less than INFO sees nothing."""
    caplog.set_level(logging.INFO, "wanstore")
    pipe: Any = load(tiny_sealed, weights="deferred")
    activate(pipe, "cpu")
    load(tiny_sealed, device="cpu")
    told = [record.message for record in caplog.records if record.name == "wanstore"]
    for line, done in zip(told, ("prepared", "activated on cpu", "loaded on cpu"), strict=True):
        assert re.fullmatch(rf"{tiny_sealed.name}: {done} in \d+\.\d\d s, bound by [a-z ]+", line)


# --- the attention backend


def test_on_a_cpu_the_asked_backend_is_not_used_and_the_reason_told(tiny_sealed: Path) -> None:
    """Asked for in the call, or noted in the manifest."""
    pipe = load(tiny_sealed, device="cpu", attention="xformers")
    found = pipe.load_report.attention
    assert found and (found.asked, found.used) == ("xformers", "native")
    assert "needs a GPU" in str(pipe.load_report)
    note(tiny_sealed, attention="xformers")
    deferred: Any = load(tiny_sealed, weights="deferred")
    assert "attention native" not in str(deferred.load_report)
    activate(deferred, "cpu")
    for report in (deferred.load_report, deferred.activation_report):
        assert report.attention.asked == "xformers"


def test_without_one_asked_for_diffusers_own_choice_stands(tiny_sealed: Path) -> None:
    """And the report says nothing of it."""
    assert load(tiny_sealed, device="cpu").load_report.attention is None


def test_an_unknown_backend_is_refused_in_the_first_half(tiny_sealed: Path) -> None:
    """Not after a snapshot was restored."""
    with pytest.raises(NotSupportedError, match=r"xfromers.*xformers"):
        load(tiny_sealed, weights="deferred", attention="xfromers")


def test_a_backend_that_is_not_installed_falls_back_with_the_reason(tiny_sealed: Path) -> None:
    """On a GPU; here the call is made as if there were one, and fails before it is needed."""
    from wanstore.building._attention import use_backend

    pipe = load(tiny_sealed, device="cpu")
    assert "xformers" in use_backend(pipe, "xformers", torch.device("cuda")).lower()


def test_a_fallback_on_a_gpu_is_a_warning_in_the_log(tiny_sealed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU it is none: a pipeline may be prepared there, for a GPU."""
    from wanstore.loading._activate import apply_attention

    transformer = load(tiny_sealed, device="cpu", attention="xformers").transformer
    assert [record.message for record in caplog.records if record.name == "wanstore"] == []
    apply_attention(SimpleNamespace(transformer=transformer, device=torch.device("cuda")), "xformers")
    (told,) = [record for record in caplog.records if record.name == "wanstore"]
    assert told.levelname == "WARNING" and told.message.startswith("attention native, not xformers: ")


@pytest.mark.gpu
def test_on_a_gpu_native_attention_works(tiny_sealed: Path) -> None:
    """It is tried out, and the report says so."""
    pipe = load(tiny_sealed, device="cuda", attention="native")
    found = pipe.load_report.attention
    assert found and (found.used, found.reason) == ("native", "")


# --- what the first half of a CPU snapshot must not do

UNTOUCHED = """
import sys, torch
def refuse(*_, **__):
    raise AssertionError("CUDA was asked")
for name in ("is_available", "device_count", "current_device", "get_device_capability", "get_device_name",
             "get_device_properties", "init", "_lazy_init", "is_bf16_supported", "mem_get_info"):
    setattr(torch.cuda, name, refuse)
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, refuse)
from wanstore.loading._load import load_folder as load
load(sys.argv[1], device="cpu", attention="xformers")
load(sys.argv[1], weights="deferred")
assert "xformers" not in sys.modules
"""

UNTOUCHED_BY_THE_COMPILER = """
functions = [pathlib.Path(sys.argv[1])]
load(sys.argv[2], weights="deferred", compile="cached", functions=functions)
assert "torch._inductor.compile_fx" in sys.modules
report = load(sys.argv[2], device="cpu", compile="cached", functions=functions).load_report
assert report.compiled.shapes, report
"""


def test_on_the_cpu_cuda_is_not_touched_not_even_asked(tiny_sealed: Path) -> None:
    """In a process that has imported nothing yet: neither by us nor by the libraries that we import."""
    subprocess.run([sys.executable, "-c", UNTOUCHED, str(tiny_sealed)], check=True)


def test_nor_by_the_compiler_of_blocks(compiled_store: Path) -> None:
    """It is imported before the snapshot, and functions for a CPU are even loaded."""
    (functions,) = compiled_store.glob("w.compiled-*")
    code = UNTOUCHED.partition("load(sys")[0] + "import pathlib" + UNTOUCHED_BY_THE_COMPILER
    subprocess.run([sys.executable, "-c", code, str(functions), str(compiled_store / "w")], check=True)


@pytest.mark.gpu
def test_on_a_machine_with_a_gpu_its_device_is_not_even_opened(tiny_sealed: Path) -> None:
    """The driver opens it the first time that anything is asked."""
    code = """
import os, sys
from wanstore import activate
from wanstore.loading._load import load_folder as load
def is_open():
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the one that listed them
            continue
    return any(name.startswith("/dev/nvidia") for name in names)
pipes = [load(sys.argv[1], device="cpu"), load(sys.argv[1], weights="deferred")]
assert not is_open()
for pipe in pipes:
    assert activate(pipe, "cuda").device.type == "cuda"
assert is_open()
"""
    subprocess.run([sys.executable, "-c", code, str(tiny_sealed)], check=True)
