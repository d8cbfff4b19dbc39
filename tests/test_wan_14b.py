"""The 14B: its structure, in both layouts, by the same commands; and what its true size needs, known from headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wanstore
from tests.conversion.original.layout import LARGE, write_original, write_true_diffusers, write_true_original
from wanstore.api._setup import open_source
from wanstore.cli._commands import main
from wanstore.cli._doctor import plan_memory
from wanstore.cli._terminal import plan_lines
from wanstore.conversion.folder import FolderSource
from wanstore.conversion.fp16 import Fp16Converter
from wanstore.errors import DeviceMemoryError
from wanstore.presets import load_presets
from wanstore.testing import tiny_wan

FILES = 6
"""Of the transformer, as published in the original layout."""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of the 14B's structure, 40 layers of 40 heads, with little in each."""
    with pytest.MonkeyPatch.context() as patched:
        for key, value in {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 6, "ffn_dim": 64}.items():
            patched.setitem(tiny_wan.TRANSFORMER, key, value)
        return tiny_wan.make_tiny_wan(tmp_path_factory.mktemp("narrow") / "14B", shard_bytes=20_000_000)


def run(*arguments: object) -> Any:
    """What the command prints as JSON."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_both_layouts_are_set_up_and_verified_by_the_same_commands(narrow: Path, tmp_path: Path) -> None:
    """1,095 tensors of the transformer, in several files with an index, and the same in every bit."""
    original = write_original(narrow, tmp_path / "original", transformer_files=FILES)
    store = tmp_path / "store"
    for name, source in (("a", narrow), ("b", original)):
        manifest = run("setup", source, "--store", store, "--name", name)
        assert manifest["conversion"]["components"]["transformer"]["tensors"] == 1095
        assert run("verify", name, "--store", store)["damaged"] == []
        assert wanstore.load(name, store=store, device="cpu").transformer.config.num_layers == 40
    a, b = (wanstore.load(name, store=store, device="cpu").transformer.state_dict() for name in "ab")
    assert a.keys() == b.keys() and all(tensor.equal(b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("write", [write_true_diffusers, write_true_original], ids=["diffusers", "original"])
def test_a_plan_says_what_the_true_size_takes(write: Callable[..., Path], tiny_fp32: Path, tmp_path: Path) -> None:
    """Which model it is, the download, and the disk that is in use at once, without a single weight."""
    source = write(tmp_path / "source", LARGE, FILES, tiny_fp32 / "tokenizer")
    plan = wanstore.plan_setup(str(source), tmp_path / "store")
    assert plan.model == "T2V-14B" and round(plan.stored_bytes / 1e9, 2) == 40.19
    assert ", T2V-14B" in plan_lines(plan)[0] and "stores 40.19 GB" in plan_lines(plan)[2]
    from_hub = Fp16Converter().plan(open_source(str(source)))
    two = sorted((path.stat().st_size for path in source.rglob("*")), reverse=True)[:2]
    assert from_hub.source_bytes > 57e9 and 0 <= from_hub.peak_bytes - from_hub.stored_bytes - sum(two) < 1e6


def test_doctor_says_which_device_holds_the_true_size(tiny_fp32: Path, tmp_path: Path) -> None:
    """Of a stored 14B, from its headers: the transformer alone is more than 24 GiB cards have."""
    source = write_true_diffusers(tmp_path / "source", LARGE, FILES, tiny_fp32 / "tokenizer")
    plan = Fp16Converter().plan(FolderSource(source))
    stored = tmp_path / "stored"  # but for the values
    for path in plan.copies:
        (stored / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, stored / path)
    for shard in plan.shards:
        with (stored / shard.path).open("wb") as file:
            file.write(shard.layout.header)
            file.truncate(shard.layout.file_bytes)
    for path, index in plan.indexes.items():
        (stored / path).write_text(json.dumps(index))
    preset = load_presets(None, "T2V-14B")["480p/5s"]
    with pytest.raises(DeviceMemoryError, match=r"needs 3\d\.\d GiB in denoising under the smallest plan"):
        plan_memory(stored, preset, {}, 22)
    offloaded, resident = plan_memory(stored, preset, {}, 44), plan_memory(stored, preset, {}, 80)
    assert offloaded and "offloaded" in offloaded["plan"]
    assert resident and resident["plan"] == "all resident"
