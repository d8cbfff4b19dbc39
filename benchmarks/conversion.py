"""float32 to float16, wanstore against its peers, each in a fresh process on the same source.

    python benchmarks/conversion.py WORKFOLDER [--text-encoder-layers 0] [--runs 4] [--only WAY ...] [--warm]

Makes a source of the real shapes with random weights in WORKFOLDER (10.4 GB without text encoder layers, its
embedding alone; 28.9 GB with the real 24; needs twice that on disk), then converts it in turn by each way, with
the source in the page cache (warm) and dropped from it (cold). Prints a Markdown table of medians: whole
process, imports included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def by_wanstore(source: Path, target: Path) -> None:
    """Statistics, SHA-256 and durable files included."""
    from wanstore.conversion.folder import FolderSource
    from wanstore.conversion.fp16 import Fp16Converter

    converter = Fp16Converter()
    converter.convert(converter.plan(FolderSource(source)), target)


def by_save_pretrained(source: Path, target: Path) -> None:
    """What diffusers' documentation says."""
    import torch
    from diffusers import WanPipeline

    WanPipeline.from_pretrained(source, dtype=torch.float16).save_pretrained(target)


def by_half(source: Path, target: Path) -> None:
    """Shard by shard, whole shards in memory: no hash, no statistics, no fsync."""
    from safetensors.torch import load_file, save_file

    for path in sorted(source.rglob("*.safetensors")):
        out = target / path.relative_to(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, out)


HELD_BYTES = 8 << 30
"""As much as the way holds that loads whole shards; what is left keeps the source in page cache."""

WAYS: dict[str, Callable[[Path, Path], None]] = {
    "wanstore": by_wanstore,
    "from_pretrained + save_pretrained": by_save_pretrained,
    "load_file, half, save_file": by_half,
}


def hold_memory() -> None:
    """A process that held memory, and is gone: virtual machines hand out quickly only what was handed out before."""
    subprocess.run([sys.executable, "-c", f"b'1' * {HELD_BYTES}"], check=True)


def measure(way: str, source: Path, target: Path, *, cold: bool) -> tuple[float, float]:
    """Wall-clock seconds and peak memory in GB of one fresh process."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    hold_memory()
    for path in source.rglob("*.safetensors"):
        with path.open("rb") as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(64 << 20):
                    pass
    began = time.perf_counter()
    command = [sys.executable, __file__, str(source), "--run", way, "--target", str(target)]
    peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return time.perf_counter() - began, int(peak) * 1024 / 1e9


def compare(folder: Path, layers: int, runs: int, ways: list[str], states: list[str]) -> None:
    source = folder / f"source-{layers}"
    if not (source / "made").exists():
        from full_size import make_full_size

        make_full_size(source, text_encoder_layers=layers)
        (source / "made").touch()
    size = sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    found: dict[str, dict[str, list[tuple[float, float]]]] = {way: {state: [] for state in states} for way in ways}
    orders = itertools.islice(itertools.cycle(itertools.permutations(ways)), runs)
    for order in orders:
        for state in states:
            for way in order:
                found[way][state].append(measure(way, source, folder / "target", cold=state == "cold"))
                print(f"{way}, {state}: {found[way][state][-1]}", file=sys.stderr)
    shutil.rmtree(folder / "target")
    (folder / f"conversion-{layers}.json").write_text(json.dumps(found, indent=2))
    print(f"{size / 1e9:.1f} GB of float32, {os.cpu_count()} cores, median of {runs}\n")
    columns = [*(f"{state} s" for state in states), "peak memory GB", *(f"{state}, times wanstore" for state in states)]
    print(f"| way | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    middle = {way: {state: statistics.median(s for s, _ in found[way][state]) for state in states} for way in ways}
    for way in ways:
        peak = max(gb for rows in found[way].values() for _, gb in rows)
        seconds = [f"{middle[way][state]:.1f}" for state in states]
        ratios = [f"{middle[way][state] / middle['wanstore'][state]:.2f}" for state in states]
        print(f"| {way} | {' | '.join([*seconds, f'{peak:.2f}', *ratios])} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text-encoder-layers", type=int, default=0)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="and wanstore")
    parser.add_argument("--warm", action="store_true", help="only with the source in page cache")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        WAYS[options.run](options.folder, options.target)
        print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
    else:
        ways = list(dict.fromkeys(["wanstore", *options.only]))
        states = ["warm"] if options.warm else ["warm", "cold"]
        compare(options.folder, options.text_encoder_layers, options.runs, ways, states)
