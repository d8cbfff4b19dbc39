"""A pipeline folder written anew in the layout that Wan 2.1 was first published in."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

from wanstore.components import COMPONENTS
from wanstore.conversion.original._names import MODULES
from wanstore.testing.converters import read_component

T5 = "models_t5_umt5-xxl-enc-bf16.pth"
VAE = "Wan2.1_VAE.pth"
TRANSFORMER = "diffusion_pytorch_model.safetensors"


def original_name(component: str, name: str) -> str:
    """The name that a tensor of the diffusers folder was published by at first."""
    module, _, leaf = name.rpartition(".")
    inverse = {new: old for old, new in MODULES[component].items()}
    for new, number, end in (
        (module, "", f".{leaf}"),
        (re.sub(r"\.\d+\.", ".#.", module, count=1), _number(module), f".{leaf}"),
        (name, "", ""),
        (re.sub(r"\.\d+\.", ".#.", name, count=1), _number(name), ""),
    ):
        if new in inverse:
            return inverse[new].replace("#", number) + end
    raise KeyError(name)


def _number(name: str) -> str:
    match = re.search(r"\.(\d+)\.", name)
    return match[1] if match else ""


def write_original(pipeline: Path, folder: Path, *, transformer_files: int = 1) -> Path:
    """Write the tensors, configs and tokenizer of `pipeline` into `folder`, in the original layout."""
    folder.mkdir()
    tensors = {
        component: {
            original_name(component, name): tensor for name, tensor in read_component(pipeline / component).items()
        }
        for component in COMPONENTS
    }
    write_transformer(tensors["transformer"], folder, transformer_files)
    for component, file in (("text_encoder", T5), ("vae", VAE)):
        torch.save(state_dict(tensors[component]), folder / file)
    config = json.loads((pipeline / "transformer/config.json").read_text())
    original = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v", "text_len": 512,
        "dim": config["num_attention_heads"] * config["attention_head_dim"], "num_heads": config["num_attention_heads"],
        "in_dim": config["in_channels"], "out_dim": config["out_channels"],
        **{key: config[key] for key in ("eps", "ffn_dim", "freq_dim", "num_layers")},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(original, indent=2))
    shutil.copytree(pipeline / "tokenizer", folder / "google/umt5-xxl")
    return folder


def state_dict(tensors: dict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """What `Module.state_dict` returns: it has an attribute besides."""
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def write_transformer(tensors: dict[str, torch.Tensor], folder: Path, files: int) -> None:
    """In one file, or in several with an index, as the 14B is published."""
    if files == 1:
        save_file(tensors, folder / TRANSFORMER, metadata={"format": "pt"})
        return
    stem, names, weight_map = TRANSFORMER.removesuffix(".safetensors"), sorted(tensors), {}
    for number in range(files):
        file = f"{stem}-{number + 1:05d}-of-{files:05d}.safetensors"
        held = {name: tensors[name] for name in names[number::files]}
        save_file(held, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    (folder / f"{TRANSFORMER}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
