"""How well setup hides converting behind fetching: each alone, then the whole, on a Hub on 127.0.0.1.

    python benchmarks/setup_overlap.py WORKFOLDER [--rate-mb 200] [--text-encoder-layers 0]

The Hub is throttled to a network's rate, since a loopback without a limit only measures the machine's copying.
Prints a Markdown table. The source is of the real shapes with random weights, made in WORKFOLDER if absent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPO = "bench/full-size"


def fetch(source: str, target: Path) -> None:
    from wanstore._setup import open_source
    from wanstore.conversion.fp16 import Fp16Converter
    from wanstore.interfaces import Quiet

    published = open_source(source)
    for path in Fp16Converter().plan(published).source_paths:
        published.release(path, published.fetch(path, target, Quiet()))


def set_up(source: str, target: Path) -> None:
    import wanstore

    wanstore.setup(source, target, name="w")


STEPS: dict[str, Callable[[str, Path], None]] = {"fetch": fetch, "setup": set_up}


def timed(step: str, source: str, target: Path, **environment: str) -> float:
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    began = time.perf_counter()
    command = [sys.executable, __file__, source, "--step", step, "--target", str(target)]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return time.perf_counter() - began


def measure(folder: Path, rate_mb: int, layers: int) -> None:
    from wanstore.testing.hub import LoopbackHub

    source = folder / f"source-{layers}"
    if not (source / "made").exists():
        from full_size import make_full_size

        make_full_size(source, text_encoder_layers=layers)
        (source / "made").touch()
    size = sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    target = folder / "target"
    with LoopbackHub(rate_bytes=rate_mb * 1_000_000) as hub:
        hub.add_repo(REPO, source)
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf")}
        fetching = timed("fetch", REPO, target, **environment)
        converting = timed("setup", str(source), target)
        whole = timed("setup", REPO, target, **environment)
    shutil.rmtree(target)
    slower = max(fetching, converting)
    print(f"{size / 1e9:.1f} GB of float32 from a Hub throttled to {rate_mb} MB/s, {os.cpu_count()} cores\n")
    print("| step | s | times the slower of the two alone |")
    print("| --- | --- | --- |")
    for name, seconds in (
        ("fetching alone", fetching),
        ("converting alone, from a folder", converting),
        ("setup", whole),
    ):
        print(f"| {name} | {seconds:.1f} | {seconds / slower:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rate-mb", type=int, default=200)
    parser.add_argument("--text-encoder-layers", type=int, default=0)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        STEPS[options.step](options.folder, options.target)
    else:
        measure(Path(options.folder), options.rate_mb, options.text_encoder_layers)
