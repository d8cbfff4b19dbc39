"""The program that test_gvisor freezes: it holds weights in two ways, and answers questions before and after.

    python -m tests.snapshots.program pipeline FOLDER      a pipeline, as wanstore loads it
    python -m tests.snapshots.program mapped FILE          a tensor that is mapped from its file, as a control

It reads questions from stdin, a line each, and ends with it.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random  # numpy itself brings it when it is first used, which must be before the snapshot
import torch
from safetensors.torch import load_file
from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

Acts = dict[str, Callable[..., Any]]
"""What the program can be asked, by its first word; the other words are the arguments."""


def main(kind: str, path: Path) -> None:
    torch.set_num_threads(1)
    acts = {"pipeline": hold_pipeline, "mapped": hold_mapped}[kind](path)
    acts["held"] = lambda: held_below(path)
    say("READY", None)
    for line in sys.stdin:
        act, *arguments = line.split()
        say("ANSWER", acts[act](*arguments))


def say(word: str, value: Any) -> None:
    sys.stdout.write(f"{word} {json.dumps(value)}\n")
    sys.stdout.flush()


def hold_pipeline(folder: Path) -> Acts:
    from wanstore import activate
    from wanstore.errors import WanstoreError
    from wanstore.loading._load import load_folder as load

    pipes = {
        "resident": load(folder, device="cpu"),
        "deferred": load(folder, device="cpu", weights="deferred"),
    }

    def ready(weights: str) -> str:
        try:
            activate(pipes[weights], "cpu")
        except WanstoreError as error:
            return f"{type(error).__name__}: {error}"
        return "ready"

    return {"activate": ready, "clip": lambda weights: clip_of(pipes[weights]), "draw": draw}


def hold_mapped(file: Path) -> Acts:
    (tensor,) = load_file(file).values()
    return {"sum": lambda: tensor.sum().item()}


def clip_of(pipe: Any) -> dict[str, str]:
    """SHA-256 of a clip, and of every weight: the VAE's encoder has no part in clips."""
    pipe.set_progress_bar_config(disable=True)
    tqdm.monitor_interval = 0  # the bar would leave a thread, disabled or not
    output = pipe(
        "a red fox in the snow",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="np",
    )
    (frames,) = output.frames
    assert np.isfinite(frames).all() and frames.std() > 0
    weights = hashlib.sha256()
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        for name, tensor in model.state_dict().items():
            weights.update(name.encode() + tensor.numpy().tobytes())
    return {"clip": hashlib.sha256(frames.tobytes()).hexdigest(), "weights": weights.hexdigest()}


def held_below(path: Path) -> dict[str, list[str]]:
    """What this process holds that a snapshot cannot keep: of `path`, mappings and files; sockets; threads."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    descriptors = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return {
        "mappings": [line for line in maps if str(path) in line],
        "files": [target for target in descriptors if target.startswith(str(path))],
        "sockets": [target for target in descriptors if target.startswith("socket:")],
        "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
    }


def draw() -> dict[str, float]:
    """A number from each of the random generators that programs lean on."""
    return {"random": random.random(), "numpy": np.random.random(), "torch": torch.rand(()).item()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
