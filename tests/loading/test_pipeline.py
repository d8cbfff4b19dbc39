"""The pipeline that `load` returns: diffusers' own class, with reports, a plan and a lock that are always there."""

from __future__ import annotations

import inspect
import json
import threading
from pathlib import Path
from typing import Any, get_args

import diffusers
import pytest
from diffusers.models.attention_dispatch import AttentionBackendName

import wanstore
from wanstore.choices import AttentionBackend, ComponentName
from wanstore.components import COMPONENTS
from wanstore.errors import NotActivatedError

SHORT: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_frames": 1,
    "num_inference_steps": 1,
    "max_sequence_length": 16,
}


def load(folder: Path, **how: Any) -> wanstore.WanPipeline:
    return wanstore.load(folder, sealed=False, device="cpu", **how)


@pytest.mark.parametrize("memory", ["auto", "resident", "offload"])
def test_every_memory_mode_gives_the_same_class(tiny_fp16: Path, memory: Any) -> None:
    """diffusers' subclass, with what was not done yet as None."""
    pipe = load(tiny_fp16, memory=memory)
    assert type(pipe) is wanstore.WanPipeline and isinstance(pipe, diffusers.WanPipeline)
    assert pipe.activation_report is None
    assert (pipe.memory_plan is None) == (memory != "offload")


def test_a_call_takes_what_diffusers_takes() -> None:
    """The same arguments with the same defaults, spelled out so that editors know them."""

    def arguments(pipeline: Any) -> dict[str, Any]:
        return {name: one.default for name, one in inspect.signature(pipeline.__call__).parameters.items()}

    assert arguments(wanstore.WanPipeline) == arguments(diffusers.WanPipeline)


def test_the_choices_are_those_of_the_libraries() -> None:
    """A type checker accepts just the names that work."""
    assert set(get_args(AttentionBackend)) == {backend.value for backend in AttentionBackendName}
    assert set(get_args(ComponentName)) == set(COMPONENTS)


def test_a_deferred_pipeline_says_that_it_has_no_weights_yet(tiny_sealed: Path) -> None:
    """Until it is activated; a failed activation changes nothing about it."""
    pipe = wanstore.load(tiny_sealed, weights="deferred")
    for _ in range(2):
        uses: list[Any] = [lambda: pipe("a cat", **SHORT), lambda: pipe.encode_prompt("a cat")]
        for use in uses:
            with pytest.raises(NotActivatedError, match=r"no weights yet.*Call wanstore\.activate"):
                use()
        with pytest.raises(wanstore.WanstoreError):
            wanstore.activate(pipe, "toaster")
    wanstore.activate(pipe, "cpu")
    assert pipe.activation_report is not None
    assert pipe("a cat", **SHORT).frames.shape == (1, 1, 32, 32, 3)


def test_the_lock_keeps_a_second_thread_out(tiny_fp16: Path) -> None:
    """Who holds it can do several things that belong together."""
    pipe = load(tiny_fp16)
    pipe.set_progress_bar_config(disable=True)
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(pipe("a cat", **SHORT)))
    with pipe.lock:
        thread.start()
        thread.join(0.5)
        assert made == []
        pipe("a dog", **SHORT)
    thread.join()
    assert len(made) == 1


def test_a_load_report_is_json_too(tiny_fp16: Path) -> None:
    """Every phase with its seconds and bytes."""
    report = load(tiny_fp16).load_report
    document = json.loads(report.to_json())
    assert [phase["name"] for phase in document["phases"]] == [phase.name for phase in report.phases]
    assert document["size_bytes"] == report.size_bytes and document["transfer"]["seconds"] > 0
