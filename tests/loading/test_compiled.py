"""Blocks that run compiled: with the functions that a store keeps, where they fit, and as before where they do not."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.transformers import transformer_wan
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

import wanstore
from tests.conftest import SMALL
from wanstore.manifest import MANIFEST_NAME, dump_manifest, read_manifest
from wanstore.memory import MemoryPlan

TOLERANCE = 0.02
"""Of a latent's own size: what functions may change before they are refused where they are made."""

INPUTS = {
    "hidden_states": torch.randn(1, 16, 2, 4, 4, dtype=torch.float16),
    "timestep": torch.tensor([500]),
    "encoder_hidden_states": torch.randn(1, 512, 64, dtype=torch.float16),
}
"""What the transformer is given for such a clip."""


def load(store: Path, **how: Any) -> Any:
    pipe = wanstore.load("w", store=store, **{"device": "cpu", **how})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latent(pipe: Any, steps: int = 2, **size: int) -> torch.Tensor:
    size = {**SMALL, **size}
    made: torch.Tensor = pipe(
        "a cat", height=size["height"], width=size["width"], num_frames=size["frames"], num_inference_steps=steps,
        output_type="latent", generator=torch.Generator("cpu").manual_seed(0),
    ).frames  # fmt: skip
    return made


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).float().square().mean().sqrt() / theirs.float().square().mean().sqrt())


def functions_folder(store: Path) -> Path:
    (folder,) = store.glob("w.compiled-*")
    return folder


@pytest.fixture(scope="module")
def eager(compiled_store: Path) -> Any:
    """The pipeline as it is without functions."""
    return load(compiled_store)


def test_stored_functions_run_every_block(compiled_store: Path, eager: Any) -> None:
    """Two steps with guidance are four forwards of two blocks. Equal bits each time, and next to those without."""
    pipe = load(compiled_store, compile="cached")
    made = latent(pipe)
    assert pipe._functions.runs == 8
    assert 0 < difference(made, latent(eager)) < TOLERANCE
    assert torch.equal(made, latent(pipe)) and torch.equal(made, latent(load(compiled_store, compile="cached")))


def test_the_report_says_what_was_compiled_and_what_it_took(compiled_store: Path) -> None:
    """By the inputs, which any preset of that size has."""
    report = load(compiled_store, compile="cached").load_report
    assert report.compiled.shapes == ("1x8",) and str(report).endswith("blocks compiled for 1x8 tokens")
    assert report.phase("compile").seconds > 0 and report.phase("compiler").seconds >= 0
    assert json.loads(report.to_json())["compiled"]["asked"] == "cached"


def test_without_being_asked_nothing_is_compiled_or_imported(compiled_store: Path) -> None:
    """Functions are code: that they lie there is no reason to run them."""
    code = """
import sys, wanstore
pipe = wanstore.load("w", store=sys.argv[1], device="cpu")
assert pipe.load_report.compiled is None and pipe._functions is None
assert "torch._inductor.compile_fx" not in sys.modules and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(compiled_store)], check=True)


def test_a_clip_of_another_size_is_made_as_before(compiled_store: Path, eager: Any) -> None:
    """Bit for bit, and without a word: it was asked for what is there."""
    pipe = load(compiled_store, compile="cached")
    assert torch.equal(latent(pipe, width=64), latent(eager, width=64)) and pipe._functions.runs == 0


def test_deferred_weights_get_their_functions_when_they_are_activated(compiled_store: Path) -> None:
    """And once: the second activation finds nothing to do. The compiler is imported before, where a snapshot has it."""
    pipe: Any = load(compiled_store, compile="cached", weights="deferred")
    assert pipe.load_report.phase("compiler")
    wanstore.activate(pipe, "cpu")
    assert pipe.activation_report.compiled.shapes == pipe.load_report.compiled.shapes == ("1x8",)
    made = latent(pipe)
    wanstore.activate(pipe, "cpu")
    assert pipe.activation_report.compiled is None
    assert torch.equal(made, latent(pipe)) and pipe._functions.runs == 16


@pytest.mark.parametrize("from_host", [False, True])
def test_a_transformer_that_comes_back_is_not_compiled_again(compiled_store: Path, from_host: bool) -> None:
    """Parameters are read at each call: the same function takes those that came back."""
    plan = MemoryPlan(("text_encoder", "transformer", "vae"), from_host=from_host)
    pipe = load(compiled_store, compile="cached", memory=plan)
    made = latent(pipe)
    assert torch.equal(made, latent(load(compiled_store, compile="cached")))
    assert torch.equal(made, latent(pipe)) and pipe._functions.runs == 16


def test_under_inference_mode_too(compiled_store: Path) -> None:
    """Tensors that are made under it would not pass the guards."""
    pipe = load(compiled_store, compile="cached")
    made = latent(pipe)
    pipe.forget_prompts()
    with torch.inference_mode():
        assert torch.equal(made, latent(pipe))
    assert pipe._functions.runs == 16


# --- functions that do not fit


def rewrite(folder: Path, **options: str) -> None:
    manifest = read_manifest(folder)
    assert manifest
    conversion = attrs.evolve(manifest.conversion, options=manifest.conversion.options | options)
    (folder / MANIFEST_NAME).write_bytes(dump_manifest(attrs.evolve(manifest, conversion=conversion)))


def alter(folder: Path) -> None:
    path = folder / "1x8.function"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: rewrite(folder, torch="2.0.0"), "those that are stored are for torch 2.0.0, not 2."),
        (lambda folder: rewrite(folder, device="NVIDIA L4", attention="xformers"), "device NVIDIA L4, not"),
        (alter, "was altered: its hash does not match"),
        (lambda folder: (folder / "1x8.function").unlink(), "cannot be read"),
        (lambda folder: (folder / MANIFEST_NAME).write_text("{"), "is not a manifest"),
        (lambda folder: (folder / MANIFEST_NAME).unlink(), "none are stored"),
    ],
)
def test_what_is_stale_or_altered_is_ignored_with_a_reason(
    compiled_copy: Path, eager: Any, change: Callable[[Path], None], reason: str
) -> None:
    """Nothing of it is unpickled, and the pipeline is as without."""
    pipe = load(compiled_copy, weights="deferred", compile="cached")
    change(functions_folder(compiled_copy))
    wanstore.activate(pipe, "cpu")
    report = pipe.activation_report.compiled
    assert report.shapes == () and reason in report.reason and reason in str(report)
    assert pipe._functions is None and torch.equal(latent(pipe), latent(eager))


def test_where_none_are_stored_the_compiler_is_not_even_imported(
    tiny_sealed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The endpoint always asks: it costs nothing where there is nothing, but a warning in the log."""
    pipe = wanstore.load(tiny_sealed, device="cpu", compile="cached")
    assert pipe.load_report.compiled and pipe.load_report.compiled.reason == "none are stored"
    told = [(record.levelname, record.message) for record in caplog.records if record.name == "wanstore"]
    assert told == [("WARNING", f"{tiny_sealed.name}: no compiled blocks: none are stored")]
    with pytest.raises(KeyError):
        pipe.load_report.phase("compiler")


def test_without_a_compiler_there_is_one_line_and_the_pipeline_as_it_was(compiled_store: Path) -> None:
    """torch asks for a C++ compiler on a CPU, triton for a C compiler on a GPU."""
    code = """
import sys, wanstore
pipe = wanstore.load("w", store=sys.argv[1], device="cpu", compile="cached")
print(pipe.load_report.compiled)
"""
    environment = {**os.environ, "PATH": "/nowhere"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(compiled_store)], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("no compiled blocks: No working C++ compiler found") and run.stdout.count("\n") == 1


def test_a_function_that_fails_is_dropped(
    compiled_store: Path, eager: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The clip is made, and one line of the log says why it took longer. Out of memory stays what it is."""
    pipe = load(compiled_store, compile="cached")
    (function,) = pipe._functions._functions[1, 8]

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(function, "fn", fail)
    error: Exception = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        latent(pipe)
    error = ValueError("no such kernel\nand more")
    assert torch.equal(latent(pipe), latent(eager))
    assert [record.message for record in caplog.records if record.name == "wanstore"] == [
        "blocks for 1 × 8 tokens cannot run compiled, and run eagerly: no such kernel"
    ]


# --- blocks that are not what was compiled


class Layer(torch.nn.Linear):
    """As an adapter replaces one: another class, another result."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return super().forward(given) * 1.5


def add_adapters(transformer: Any) -> None:
    for block in transformer.blocks:
        old = block.attn1.to_q
        block.attn1.to_q = Layer(old.in_features, old.out_features, dtype=old.weight.dtype)
        block.attn1.to_q.load_state_dict(old.state_dict())


def hook_blocks(transformer: Any) -> None:
    for block in transformer.blocks:
        block.register_forward_hook(lambda *given: given[2] * 1.5)


def hook_inside(transformer: Any) -> None:
    for block in transformer.blocks:
        block.ffn.register_forward_hook(lambda *given: given[2] * 1.5)


def replace_forward(transformer: Any) -> None:
    for block in transformer.blocks:
        forward = block.forward
        block.forward = lambda *given, forward=forward: forward(*given) * 1.5


def change_a_setting(transformer: Any) -> None:
    for block in transformer.blocks:
        block.norm2.eps = 1e-2


class Processor(WanAttnProcessor):  # type: ignore[misc]
    """As a user's own."""

    def __call__(self, attn: Any, hidden_states: Any, *given: Any, **named: Any) -> Any:
        return super().__call__(attn, hidden_states, *given, **named) * 1.5


def change_the_processor(transformer: Any) -> None:
    for block in transformer.blocks:
        block.attn1.set_processor(Processor())


class OtherBlock(WanTransformerBlock):  # type: ignore[misc]
    """With a forward of its own, that takes more."""

    def forward(self, *given: Any, strength: float = 1.5) -> Any:
        return super().forward(*given) * strength


def change_the_class(transformer: Any) -> None:
    for block in transformer.blocks:
        block.__class__ = OtherBlock


CHANGES = [
    add_adapters, hook_blocks, hook_inside, replace_forward, change_a_setting, change_the_processor, change_the_class,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_blocks_that_were_changed_run_as_they_are(
    compiled_store: Path, change: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Adapters, hooks, another forward or setting: the clip is the one that an eager pipeline makes with them."""
    pipe, plain = load(compiled_store, compile="cached"), load(compiled_store)
    before = latent(pipe)
    runs = pipe._functions.runs
    for one in (pipe, plain):
        change(one.transformer)
    made = latent(pipe)
    assert pipe._functions.runs == runs
    assert torch.equal(made, latent(plain)) and not torch.equal(made, before)
    assert [record.message[:32] for record in caplog.records if record.name == "wanstore"] == [
        "blocks are not what was compiled"
    ], "once, not for each block of each step"


def patch(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """As attention kernels are often installed."""
    original = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *given, **named: original(*given, **named) * 1.5)


PATCHES = [
    (torch.nn.functional, "scaled_dot_product_attention"), (transformer_wan, "dispatch_attention_fn"),
    (WanAttnProcessor, "__call__"), (WanTransformerBlock, "forward"), (torch.nn.Linear, "forward"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name"), PATCHES)
def test_patched_code_runs_whenever_it_was_patched(
    compiled_store: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    """Before the load or after it: functions were made of other code."""
    pipe = load(compiled_store, compile="cached")
    patch(monkeypatch, where, name)
    later, plain = load(compiled_store, compile="cached"), load(compiled_store)
    made = latent(plain)
    assert torch.equal(latent(pipe), made) and torch.equal(latent(later), made)
    assert pipe._functions.runs == 0 and "was patched" in str(later.load_report.compiled)


def test_a_cache_of_diffusers_works_and_leaves_them_when_it_goes(compiled_store: Path) -> None:
    """Its hooks take the place of forward, and leave the block's own there."""
    pipe, plain = load(compiled_store, compile="cached"), load(compiled_store)
    for one in (pipe, plain):
        one.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    assert torch.equal(latent(pipe), latent(plain)) and pipe._functions.runs == 0
    pipe.transformer.disable_cache()
    latent(pipe)
    assert pipe._functions.runs == 8


def test_parameters_without_gradients_are_the_same_to_them(compiled_store: Path) -> None:
    """A line that many write for inference."""
    pipe = load(compiled_store, compile="cached")
    made = latent(pipe)
    pipe.transformer.requires_grad_(False)
    assert torch.equal(made, latent(pipe)) and pipe._functions.runs == 16


def test_a_callback_keeps_the_inference_mode_of_its_caller(compiled_store: Path) -> None:
    """It may write to tensors that were made under it."""
    pipe = load(compiled_store, compile="cached")
    with torch.inference_mode():
        total = torch.zeros(1, 16, 2, 4, 4)

        def add(_pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            total.add_(tensors["latents"])
            return {}

        pipe("a cat", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="latent",
             callback_on_step_end=add)  # fmt: skip
    assert total.abs().sum() > 0 and pipe._functions.runs == 8


def test_tangents_flow_as_before(compiled_store: Path) -> None:
    """Forward-mode differentiation works without gradients being on."""
    pipe = load(compiled_store, compile="cached")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        given = {**INPUTS, "hidden_states": forward_ad.make_dual(INPUTS["hidden_states"], INPUTS["hidden_states"])}
        made = pipe.transformer(**given, return_dict=False)[0]
        assert forward_ad.unpack_dual(made).tangent is not None


def test_under_autocast_or_deterministic_algorithms_blocks_run_as_they_are(compiled_store: Path) -> None:
    """Functions were made for neither."""
    pipe = load(compiled_store, compile="cached")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        pipe.transformer(**INPUTS)
    torch.use_deterministic_algorithms(True)
    try:
        latent(pipe)
    finally:
        torch.use_deterministic_algorithms(False)
    assert pipe._functions.runs == 0


def test_functions_do_not_depend_on_the_number_of_cores(compiled_store: Path) -> None:
    """They were made with one thread, and a container may have any number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        pipe = load(compiled_store, compile="cached")
        latent(pipe, steps=1)
    finally:
        torch.set_num_threads(threads)
    assert pipe._functions.runs == 4


def test_another_attention_backend_is_used(compiled_store: Path) -> None:
    """It is one of the things that functions are made for."""
    pipe = load(compiled_store, compile="cached")
    pipe.transformer.set_attention_backend("_native_math")
    try:
        latent(pipe)
        assert pipe._functions.runs == 0
    finally:
        pipe.transformer.set_attention_backend("native")  # diffusers keeps it for the whole process


@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_what_the_user_compiles_takes_their_place(compiled_store: Path, eager: Any, how: str) -> None:
    """diffusers' own call, and torch's."""
    pipe = load(compiled_store, compile="cached")
    if how == "blocks":
        pipe.transformer.compile_repeated_blocks(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert difference(latent(pipe), latent(eager)) < TOLERANCE
    assert pipe._functions.runs == 0


def test_a_copy_of_the_transformer_has_no_functions(compiled_store: Path) -> None:
    """It can be copied, and goes on as any module does."""
    pipe = load(compiled_store, compile="cached")
    copied = copy.deepcopy(pipe.transformer)
    assert all(block._compiled_call_impl is None for block in copied.blocks)


def test_gradients_flow_as_before(compiled_store: Path) -> None:
    """Functions are for inference alone."""
    pipe = load(compiled_store, compile="cached")
    pipe.transformer(**INPUTS, return_dict=False)[0].float().sum().backward()
    assert pipe._functions.runs == 0 and pipe.transformer.blocks[0].attn1.to_q.weight.grad is not None


def test_two_threads_load_at_once_and_leave_no_trace(compiled_store: Path) -> None:
    """torch is told that there is no GPU while a CPU's functions are loaded, by one thread at a time."""
    asked = torch.cuda.is_available
    pipes: list[Any] = []
    threads = [threading.Thread(target=lambda: pipes.append(load(compiled_store, compile="cached"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.cuda.is_available is asked
    assert [pipe.load_report.compiled.shapes for pipe in pipes] == [("1x8",)] * 3


# --- compiled as they come


def test_with_on_another_size_is_compiled_once_and_said(compiled_store: Path, eager: Any, caplog: Any) -> None:
    """It takes many seconds, so the log says so; the next clip finds it."""
    caplog.set_level(logging.WARNING, "wanstore")
    pipe = load(compiled_store, compile="on")
    assert str(pipe.load_report.compiled) == "blocks compiled for 1x8 tokens, others as they come"
    made = latent(pipe, steps=1, width=64)
    assert 0 < difference(made, latent(eager, steps=1, width=64)) < TOLERANCE
    assert torch.equal(made, latent(pipe, steps=1, width=64))
    told = [record.message for record in caplog.records if record.name == "wanstore"]
    assert told == ["compiling the transformer's blocks for 1 × 16 tokens: that takes a while, once"]
    runs = pipe._functions.runs
    pipe.transformer.train()  # which blocks ask nobody about, but guards do
    latent(pipe, steps=1, width=64)
    assert pipe._functions.runs > runs, "it is compiled for that state too"


def test_a_mode_that_there_is_not_is_refused(compiled_store: Path) -> None:
    """With those that there are."""
    with pytest.raises(wanstore.WanstoreError, match="off, cached or on"):
        load(compiled_store, compile="always")
