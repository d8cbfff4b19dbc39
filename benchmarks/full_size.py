"""A Wan 2.1 1.3B pipeline folder of the real shapes with random weights, to measure on.

    python benchmarks/full_size.py FOLDER [--dtype float32] [--text-encoder-layers 24]

Random weights are as large and as slow as real ones; what they generate is noise. The tokenizer is as large as
the real one, its pieces are made up. Fewer text encoder layers make a smaller folder: 0 give 10.4 GB in float32,
24 (the real count) 28.9 GB. A float16 folder is laid out and sealed as setup leaves one, so that `wanstore.load`
takes it: 14.45 GB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from wanstore._formats._safetensors import FileLayout, lay_out_file
from wanstore.components import COMPONENTS, Component
from wanstore.testing.manifests import seal_as_is
from wanstore.testing.tiny_wan import SPECIAL_TOKENS, make_tiny_wan, write_tokenizer

SHARD_ELEMENTS = 1_250_000_000
"""The published float32 shards hold at most 5 GB, and a conversion keeps to them."""
PIECE_BYTES = 32 << 20
VALUES_BYTES = 128 << 20
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
TRANSFORMER = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "text_dim": 4096}
"""What T2V-1.3B's has other than diffusers' class by default."""
PIECES, EXTRA_IDS = 256_000, 300
LETTERS = (range(0x61, 0x7B), range(0x410, 0x450), range(0x4E00, 0x9FA6), range(0x3041, 0x3097), range(0xAC00, 0xD7A4))


def make_full_size(
    folder: Path, dtype: str = "float32", text_encoder_layers: int = 24, *, distinct: bool = False
) -> Path:
    """Write the folder; scheduler and model_index.json are the tiny pipeline's.

    Values repeat, which a content store would notice, unless they are to be `distinct`: that takes longer.
    """
    make_tiny_wan(folder)
    write_tokenizer(folder / "tokenizer", _vocabulary(), EXTRA_IDS)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**TRANSFORMER)
        vae = AutoencoderKLWan()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, feed_forward_proj="gated-gelu",
                num_layers=text_encoder_layers, num_decoder_layers=text_encoder_layers, tie_word_embeddings=False,
            )
        )  # fmt: skip
    layouts: dict[Path, FileLayout] = {}
    for component, model in {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}.items():
        for old in (folder / component).iterdir():
            old.unlink()
        if component == "text_encoder":
            model.config.architectures = ["UMT5EncoderModel"]
            model.config.to_json_file(folder / component / "config.json")
        else:
            model.save_config(folder / component)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if "embed_tokens" not in name}
        layouts |= _shards(folder / component, COMPONENTS[component], shapes, DTYPES[dtype])
    values = torch.randn(VALUES_BYTES // 4, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    values = values.to(getattr(torch, dtype))
    with ThreadPoolExecutor() as pool:  # a thread a file: a file system lets one write to a file at a time
        list(pool.map(lambda item: _write(*item, values, distinct=distinct), layouts.items()))
    if dtype == "float16":
        seal_as_is(folder, weights="random")
    return folder


def _shards(folder: Path, parts: Component, shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[Path, FileLayout]:
    """The component's files, laid out; writes their index."""
    shards: list[list[str]] = [[]]
    elements = 0
    for name, shape in shapes.items():
        if shards[-1] and elements + math.prod(shape) > SHARD_ELEMENTS:
            shards.append([])
            elements = 0
        shards[-1].append(name)
        elements += math.prod(shape)
    files = {parts.shard_file(number, len(shards)): names for number, names in enumerate(shards, start=1)}
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
        (folder / parts.index_file).write_text(json.dumps(index))
    return {folder / file: lay_out_file((name, dtype, shapes[name]) for name in names) for file, names in files.items()}


def _write(path: Path, layout: FileLayout, values: torch.Tensor, *, distinct: bool) -> None:
    """Each piece is cut from `values` at a place of its own, so that no two tensors are equal.

    The VAE's norms get scales around 1, or nothing of its latents would be left to see in the frames.
    """
    around_one = values + 1
    places = random.Random(f"{path.parent.name}/{path.name}")
    with path.open("wb", buffering=0) as file:
        file.write(layout.header)
        for tensor in layout.tensors:
            source = around_one if tensor.name.endswith("gamma") else values
            for start in range(tensor.start, tensor.stop, PIECE_BYTES):
                size = min(PIECE_BYTES, tensor.stop - start)
                count = size // values.itemsize
                place = places.randrange(values.numel() - count)
                piece = source[place : place + count]
                piece = piece * places.uniform(0.9, 1.1) if distinct else piece
                file.write(piece.view(torch.uint8).numpy().data)


def _vocabulary() -> list[tuple[str, float]]:
    """As many pieces as umT5 has, in several scripts, half of them beginning a word."""
    chosen = random.Random(0)
    pieces = dict.fromkeys(SPECIAL_TOKENS, 0.0) | dict.fromkeys(map(chr, range(33, 127)), -6.0) | {"▁": -6.0}
    for letters in itertools.cycle(LETTERS):
        if len(pieces) == PIECES:
            return list(pieces.items())
        word = "".join(chr(chosen.choice(letters)) for _ in range(chosen.randint(1, 6)))
        pieces.setdefault(chosen.choice(("▁", "")) + word, round(-8 - 8 * chosen.random(), 13))
    raise AssertionError


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--text-encoder-layers", type=int, default=24)
    options = parser.parse_args()
    print(make_full_size(options.folder, options.dtype, options.text_encoder_layers))
