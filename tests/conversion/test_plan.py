"""Plans: what is wrong with a source is said from headers alone, in one line, with file and tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wanstore.conversion.folder import FolderSource
from wanstore.conversion.fp16 import Fp16Converter
from wanstore.errors import WanstoreError
from wanstore.testing.converters import write_pipeline

INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
FIRST = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
SECOND = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5\n"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [{"a": torch.randn(8, 4), "b": torch.randn(8)}, {"c": torch.randn(16)}]
    return write_pipeline(tmp_path / "source", {"transformer": shards})


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_header(path: Path, change: Callable[[Any], None]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    document = json.loads(raw[8 : 8 + length])
    change(document)
    text = json.dumps(document).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def only_pickles(folder: Path) -> None:
    (folder / VAE).rename(folder / "vae/diffusion_pytorch_model.bin")


def original_layout(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "Wan2.1_VAE.pth").write_bytes(b"pickle")


def duplicate_name(folder: Path) -> None:
    raw = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    (folder / VAE).write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0\0")


def set_index(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / INDEX, lambda d: d["weight_map"].__setitem__(name, value))


def set_entry(key: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit_header(folder / FIRST, lambda d: d["b"].__setitem__(key, value))


def pointer_for(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text(POINTER)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no model_index": (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
    "torn model_index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not JSON"),
    "original layout": (original_layout, "Diffusers"),
    "another pipeline": (
        lambda f: edit_json(f / "model_index.json", lambda d: d.update(_class_name="FluxPipeline")),
        "FluxPipeline",
    ),
    "another model": (
        lambda f: edit_json(f / "model_index.json", lambda d: d.update(vae=["diffusers", "AutoencoderKL"])),
        "vae is .*AutoencoderKL",
    ),
    "wan 2.2": (
        lambda f: edit_json(f / "model_index.json", lambda d: d.update(transformer_2=["diffusers", "X"])),
        "not a Wan 2.1",
    ),
    "no config": (lambda f: (f / "vae/config.json").unlink(), "vae/config.json is missing"),
    "no tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "tokenizer/tokenizer.json is missing"),
    "no tokenizer config": (
        lambda f: (f / "tokenizer/tokenizer_config.json").unlink(),
        "tokenizer/tokenizer_config.json is missing",
    ),
    "no weights": (lambda f: (f / VAE).unlink(), "vae has no weights"),
    "only pickles": (only_pickles, "vae holds only pickled weights.*no pickles"),
    "only a variant": (
        lambda f: (f / VAE).rename(f / "vae/diffusion_pytorch_model.fp16.safetensors"),
        "vae has only the variant fp16 .*Use a source with diffusion_pytorch_model.safetensors",
    ),
    "only a variant in shards": (
        lambda f: (f / VAE).rename(f / "vae/diffusion_pytorch_model.bf16-00001-of-00001.safetensors"),
        "vae has only the variant bf16",
    ),
    **{
        f"a Git LFS pointer for {path}": (pointer_for(path), f"{path} is a Git LFS pointer.*git lfs pull")
        for path in (
            VAE,
            FIRST,
            INDEX,
            "model_index.json",
            "vae/config.json",
            "tokenizer/tokenizer.json",
            "scheduler/scheduler_config.json",
        )
    },
    "missing shard": (lambda f: (f / SECOND).unlink(), "00002-of-00002.safetensors is missing"),
    "truncated shard": (
        lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes()[:-4]),
        "00002.*truncated.*4 bytes.*c ends",
    ),
    "shard with a tail": (lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes() + b"x"), "1 bytes after"),
    "empty shard": (lambda f: (f / SECOND).write_bytes(b""), "too short"),
    "absurd header length": (lambda f: (f / SECOND).write_bytes(b"\xff" * 64), "header claims"),
    "header is no JSON": (lambda f: (f / SECOND).write_bytes(struct.pack("<Q", 4) + b"!!!!"), "not JSON"),
    "header is no object": (lambda f: (f / SECOND).write_bytes(struct.pack("<Q", 2) + b"[]"), "not a JSON object"),
    "lying shape": (set_entry("shape", [9]), "b is F32 \\[9\\] but claims 32 bytes"),
    "negative shape": (set_entry("shape", [-8]), "b has an unknown dtype"),
    "unknown dtype": (set_entry("dtype", "F7"), "b has an unknown dtype"),
    "dtype that is no text": (set_entry("dtype", ["F32"]), "b has an unknown dtype"),
    "overlap": (set_entry("data_offsets", [0, 32]), "overlaps"),
    "quantized": (
        lambda f: save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, f / VAE),
        "w is F8_E4M3",
    ),
    "duplicate in one file": (duplicate_name, "w is there twice"),
    "duplicate over files": (
        lambda f: save_file({"c": torch.zeros(2), "a": torch.zeros(2)}, f / SECOND),
        "a is in both",
    ),
    "index out of the folder": (set_index("c", "../vae/diffusion_pytorch_model.safetensors"), "names '../vae"),
    "index by absolute path": (set_index("c", "/etc/passwd"), "names '/etc/passwd'"),
    "index of another type": (set_index("c", 7), "names 7"),
    "index names a tensor too many": (set_index("ghost", SECOND.split("/")[1]), "tensor ghost is missing"),
    "index misses a tensor": (
        lambda f: edit_json(f / INDEX, lambda d: d["weight_map"].pop("b")),
        "tensor b is in .*does not know it",
    ),
    "index names no text": (set_index("b", ["x"]), "names \\['x'\\], which is not a safetensors file"),
    "index has no map": (lambda f: (f / INDEX).write_text("{}"), "no weight_map"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_is_refused_in_one_clear_line(folder: Path, case: str) -> None:
    """Each fault is a WanstoreError that names what is wrong, whatever reads the files."""
    damage, message = BAD[case]
    damage(folder)
    with pytest.raises(WanstoreError, match=message) as caught:
        Fp16Converter().plan(FolderSource(folder))
    assert "\n" not in str(caught.value)


def test_the_plan_lists_only_what_a_pipeline_needs(folder: Path) -> None:
    """Pickles, variants, readmes and pictures beside the weights are left alone."""
    for stray in ("README.md", "vae/diffusion_pytorch_model.bin", "transformer/x.fp16.safetensors", "a/b.png"):
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_bytes(b"stray")
    plan = Fp16Converter().plan(FolderSource(folder))
    assert set(plan.source_paths) == {FIRST, SECOND, "text_encoder/model.safetensors", VAE}
    assert set(plan.copies) == {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json", "text_encoder/config.json", "vae/config.json",
    }  # fmt: skip


def test_the_peak_is_the_output_and_two_source_shards(folder: Path) -> None:
    """What the free-space check asks for, if the source has to be downloaded."""
    source = FolderSource(folder)
    plan = Fp16Converter().plan(source)
    two = sorted((source.files[path] for path in plan.source_paths), reverse=True)[:2]
    small = sum(source.files[path] for path in plan.copies)
    assert plan.peak_bytes == plan.stored_bytes + sum(two) + small


def test_a_folder_through_links_is_a_source(folder: Path, tmp_path: Path) -> None:
    """A Hub cache's snapshot folder is made of links."""
    linked = tmp_path / "linked"
    for path in folder.rglob("*"):
        if path.is_file():
            link = linked / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    assert Fp16Converter().plan(FolderSource(linked)).stored_bytes
