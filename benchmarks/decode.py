"""Decoding alone: diffusers' VAE as it comes, in its own tiles, and without its largest copies, whole and in tiles.

    python benchmarks/full_size.py FOLDER --dtype float16
    python benchmarks/decode.py FOLDER [--presets 480p/3s ...] [--dtype float32]

Latents are random numbers. Prints a Markdown table: seconds, peak of torch's allocator above what was there before, and
how the frames differ from the first way's. Needs a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from memory import differs

from wanstore.memory._estimate import GIB
from wanstore.memory._vae import make_lean
from wanstore.presets import PRESETS, SPATIAL, Preset


def main(options: argparse.Namespace) -> None:
    ways = _ways(options.folder, getattr(torch, options.dtype))
    print("| preset | way | s | GiB | frames |\n| --- | --- | ---: | ---: | --- |")
    for name in options.presets:
        latents = _latents(PRESETS[name], getattr(torch, options.dtype))
        reference = None
        for way, vae in ways.items():
            _decode(vae(), latents[:, :, :3])  # sets up what is set up once
            frames, seconds, peak = _decode(vae(), latents)
            reference = frames if reference is None else reference
            print(
                f"| {name} | {way} | {seconds:.2f} | {peak / GIB:.2f} | {differs(frames, reference, span=2)} |",
                flush=True,
            )


def _ways(folder: Path, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Each gives the function that decodes its way."""
    plain, lean = (AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=dtype).cuda().eval() for _ in range(2))
    make_lean(lean)

    def plain_one() -> Any:
        plain.disable_tiling()
        return plain.decode

    def plain_tiles() -> Any:
        plain.enable_tiling()
        return plain.decode

    def lean_in(tiles: int) -> Any:
        lean.tiles = tiles
        return lean.decode

    return {
        "diffusers": plain_one,
        "diffusers, tiled": plain_tiles,
        "without the copies": lambda: lean_in(1),
        "in 2 tiles": lambda: lean_in(2),
        "in 4 tiles": lambda: lean_in(4),
    }


def _latents(preset: Preset, dtype: torch.dtype) -> torch.Tensor:
    shape = (1, 16, preset.clip.latent_frames, preset.height // SPATIAL, preset.width // SPATIAL)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)


@torch.inference_mode()
def _decode(decode: Any, latents: torch.Tensor) -> tuple[Any, float, int]:
    """The frames, as numpy's floats; seconds until they are in the CPU's memory, and the device's bytes at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.synchronize()
    began = time.perf_counter()
    frames = decode(latents, return_dict=False)[0].cpu()
    seconds, peak = time.perf_counter() - began, torch.cuda.max_memory_allocated() - before
    return frames.float().numpy(), seconds, peak


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a float16 pipeline folder")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS), metavar="PRESET")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    main(parser.parse_args())
