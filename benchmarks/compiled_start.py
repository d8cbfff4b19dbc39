"""What compiled blocks add to a process before its first denoising step has ended.

    python benchmarks/full_size.py STORE/wan2.1-fp16 --dtype float16
    wanstore compile wan2.1-fp16 --store STORE --presets 480p/3s
    python benchmarks/compiled_start.py STORE [--name wan2.1-fp16] [--rounds 3] [--ways plain restored] [--device cuda]

Each start is a process of its own, with empty TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR, as in a fresh container.
`plain` loads onto the device. `restored` loads deferred weights first, as before a CPU memory snapshot; then what
follows is timed, `activate` and the first step, the process having stood still meanwhile. A clip of 480p/3s; on a CPU a
stamp-sized one, for which functions are made with `--size 32x32 --frames 5`. The last line of each table is what
compiled blocks add.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

WAYS = ("plain", "restored")
CLIPS = {"cuda": {"width": 832, "height": 480, "num_frames": 49}, "cpu": {"width": 32, "height": 32, "num_frames": 5}}


def start(way: str, mode: str, store: str, name: str, device: str) -> dict[str, Any]:
    """In the process itself: seconds until the pipeline is ready, and until the first step has ended."""
    import torch

    import wanstore

    began = time.monotonic()
    if way == "restored":
        pipe: Any = wanstore.load(name, store=store, weights="deferred", compile=mode)
        began = time.monotonic()
        wanstore.activate(pipe, device)
    else:
        pipe = wanstore.load(name, store=store, device=device, compile=mode)
    ready = time.monotonic()
    ends = []

    def on_step(*given: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        ends.append(time.monotonic())
        return given[3]

    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", num_inference_steps=3, output_type="latent", callback_on_step_end=on_step, **CLIPS[device])
    return {
        "ready": ready - began,
        "first step": ends[0] - began,
        "a later step": ends[2] - ends[1],
        "compiler": sum(phase.seconds for phase in pipe.load_report.phases if phase.name == "compiler"),
        "functions": sum(
            phase.seconds for phase in (pipe.activation_report or pipe.load_report).phases if phase.name == "compile"
        ),
        "runs": pipe._functions.runs if pipe._functions else 0,
    }


def measured(way: str, mode: str, asked: argparse.Namespace) -> dict[str, float]:
    """Medians of fresh processes."""
    found = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as caches:
            fresh = {"TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor", "TRITON_CACHE_DIR": f"{caches}/triton"}
            command = [sys.executable, __file__, asked.store, "--name", asked.name, "--device", asked.device]
            child = subprocess.run(
                [*command, "--start", way, mode], env={**os.environ, **fresh}, stdout=subprocess.PIPE, check=True
            )
            found.append(json.loads(child.stdout.splitlines()[-1]))
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--name", default="wan2.1-fp16")
    parser.add_argument("--device", default="cuda", choices=CLIPS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--start", nargs=2, metavar=("WAY", "MODE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.start:
        print(json.dumps(start(*asked.start, asked.store, asked.name, asked.device)))
        return
    measured("plain", "cached", argparse.Namespace(**{**vars(asked), "rounds": 1}))  # fills page cache
    for way in asked.ways:
        eager, cached = (measured(way, mode, asked) for mode in ("off", "cached"))
        if not cached["runs"]:
            sys.exit("No functions fit: make some with wanstore compile")
        columns = [key for key in eager if key != "runs"]
        print(f"| {way}, s | " + " | ".join(columns) + " |")
        print("| --- |" + " ---: |" * len(columns))
        added = {key: cached[key] - eager[key] for key in columns}
        for told, row in (("eager", eager), ("compiled blocks", cached), ("added", added)):
            print(f"| {told} | " + " | ".join(f"{row[key]:.2f}" for key in columns) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
