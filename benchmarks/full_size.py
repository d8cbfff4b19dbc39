"""A Wan 2.1 1.3B pipeline folder of the real shapes with random weights, to measure on.

    python benchmarks/full_size.py FOLDER [--dtype float32] [--text-encoder-layers 24]

Random weights are as large and as slow as real ones; what they generate is noise. Fewer text encoder layers
make a smaller folder: 0 give 10.4 GB in float32, 24 (the real count) 28.9 GB.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from wanstore.components import COMPONENTS, Component
from wanstore.testing.tiny_wan import make_tiny_wan

SHARD_BYTES = 5_000_000_000


def make_full_size(folder: Path, dtype: torch.dtype = torch.float32, text_encoder_layers: int = 24) -> Path:
    """Write the folder; tokenizer and scheduler are the tiny pipeline's."""
    make_tiny_wan(folder)  # its tokenizer, scheduler and model_index.json stay
    with torch.device("meta"):
        transformer = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30, text_dim=4096)
        vae = AutoencoderKLWan()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, feed_forward_proj="gated-gelu",
                num_layers=text_encoder_layers, num_decoder_layers=text_encoder_layers, tie_word_embeddings=False,
            )
        )  # fmt: skip
    for component, model in {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}.items():
        for old in (folder / component).iterdir():
            old.unlink()
        if component == "text_encoder":
            model.config.architectures = ["UMT5EncoderModel"]
            model.config.to_json_file(folder / component / "config.json")
        else:
            model.save_config(folder / component)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if "embed_tokens" not in name}
        _write_shards(folder / component, COMPONENTS[component], shapes, dtype)
    return folder


def _write_shards(folder: Path, parts: Component, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    values = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        amount = math.prod(shape) * dtype.itemsize
        if shards[-1] and size + amount > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += amount
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = parts.shard_file(number, len(shards))
        save_file({name: _random(values, shapes[name]) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / parts.index_file).write_text(json.dumps(index))


def _random(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    count = math.prod(shape)
    return values.repeat(-(-count // values.numel()))[:count].reshape(shape).clone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--text-encoder-layers", type=int, default=24)
    options = parser.parse_args()
    print(make_full_size(options.folder, getattr(torch, options.dtype), options.text_encoder_layers))
