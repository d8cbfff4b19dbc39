"""Pipelines in the layout that Wan 2.1 was first published in: a pipeline folder written anew, and the true sizes."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from wanstore._formats._safetensors import lay_out_file
from wanstore.building._skeleton import expected_tensors
from wanstore.components import COMPONENTS
from wanstore.conversion.original._names import MODULES
from wanstore.testing.converters import read_component
from wanstore.testing.tiny_wan import MODEL_INDEX, SCHEDULER, TEXT_ENCODER, TRANSFORMER, VAE

T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"

SMALL = {**TRANSFORMER, "attention_head_dim": 128, "ffn_dim": 8960, "num_attention_heads": 12, "num_layers": 30,
         "text_dim": 4096}  # fmt: skip
LARGE = {**SMALL, "ffn_dim": 13824, "num_attention_heads": 40, "num_layers": 40}
UMT5_XXL = {**TEXT_ENCODER, "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24,
            "num_decoder_layers": 24, "vocab_size": 256384}  # fmt: skip
TRUE_VAE = {**VAE, "base_dim": 96}

_INVERSE = {component: {new: old for old, new in modules.items()} for component, modules in MODULES.items()}


def original_name(component: str, name: str) -> str:
    """The name that a tensor of a diffusers folder was published by at first."""
    leaf = match[0] if (match := re.search(r"\.(weight|bias|gamma)$", name)) else ""
    module = name.removesuffix(leaf)
    if module in _INVERSE[component]:
        return _INVERSE[component][module] + leaf
    number = re.search(r"\.([0-9]+)\.", module)
    assert number, name
    blocks = f"{module[: number.start()]}.#.{module[number.end() :]}"
    return _INVERSE[component][blocks].replace("#", number[1]) + leaf


def write_original(pipeline: Path, folder: Path, *, transformer_files: int = 1) -> Path:
    """Write tensors, config and tokenizer of `pipeline` into `folder`, in the original layout."""
    folder.mkdir()
    tensors = {
        component: {original_name(component, n): t for n, t in read_component(pipeline / component).items()}
        for component in COMPONENTS
    }
    write_transformer(folder, tensors["transformer"], transformer_files)
    torch.save(state_dict(tensors["text_encoder"]), folder / T5_FILE)
    torch.save(state_dict(tensors["vae"]), folder / VAE_FILE)
    write_config(folder, json.loads((pipeline / "transformer/config.json").read_text()))
    shutil.copytree(pipeline / "tokenizer", folder / "google/umt5-xxl")
    return folder


def state_dict(tensors: Mapping[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """What `Module.state_dict` returns: it has an attribute besides."""
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def write_transformer(folder: Path, tensors: Mapping[str, torch.Tensor], files: int) -> None:
    """In one file, or in several with an index, as the 14B is published."""
    shards = shard_files(sorted(tensors), files)
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    write_index(folder, shards)


def shard_files(names: list[str], files: int) -> dict[str, list[str]]:
    """Which file holds which of the names."""
    return {COMPONENTS["transformer"].shard_file(n + 1, files): names[n::files] for n in range(files)}


def write_index(folder: Path, shards: Mapping[str, list[str]]) -> None:
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{TRANSFORMER_FILE}.index.json").write_text(json.dumps(index))


def write_config(folder: Path, transformer: Mapping[str, Any]) -> None:
    """The config.json of the original, which says less than that of diffusers."""
    heads = transformer["num_attention_heads"]
    config = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v", "text_len": 512,
        "dim": heads * transformer["attention_head_dim"], "num_heads": heads,
        "in_dim": transformer["in_channels"], "out_dim": transformer["out_channels"],
        **{key: transformer[key] for key in ("eps", "ffn_dim", "freq_dim", "num_layers")},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


# --- the true sizes: every header and directory is there, and holes are in the place of values


def write_true_original(folder: Path, transformer: dict[str, Any], files: int, tokenizer: Path) -> Path:
    """A source of the true size in the original layout."""
    folder.mkdir()
    sparse_transformer(folder, transformer, files, original=True)
    for component, config, dtype, file in (
        ("text_encoder", UMT5_XXL, torch.bfloat16, T5_FILE),
        ("vae", TRUE_VAE, torch.float32, VAE_FILE),
    ):
        with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
            shapes = expected_tensors(component, config)
            tensors = {original_name(component, n): torch.empty(shape, dtype=dtype) for n, shape in shapes.items()}
            torch.save(state_dict(tensors), folder / file)
    write_config(folder, transformer)
    shutil.copytree(tokenizer, folder / "google/umt5-xxl")
    return folder


def write_true_diffusers(folder: Path, transformer: dict[str, Any], files: int, tokenizer: Path) -> Path:
    """A source of the true size in the diffusers layout."""
    for path, document in {
        "model_index.json": MODEL_INDEX,
        "scheduler/scheduler_config.json": SCHEDULER,
        "transformer/config.json": transformer,
        "text_encoder/config.json": UMT5_XXL,
        "vae/config.json": TRUE_VAE,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(document))
    sparse_transformer(folder / "transformer", transformer, files, original=False)
    for component, config in (("text_encoder", UMT5_XXL), ("vae", TRUE_VAE)):
        write_sparse(folder / component / COMPONENTS[component].single_file, expected_tensors(component, config))
    shutil.copytree(tokenizer, folder / "tokenizer")
    return folder


def sparse_transformer(folder: Path, config: dict[str, Any], files: int, *, original: bool) -> None:
    shapes = expected_tensors("transformer", config)
    named = {original_name("transformer", name) if original else name: shape for name, shape in shapes.items()}
    shards = shard_files(sorted(named), files)
    for file, names in shards.items():
        write_sparse(folder / file, {name: named[name] for name in names})
    write_index(folder, shards)


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    layout = lay_out_file((name, "F32", shape) for name, shape in shapes.items())
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.file_bytes)
