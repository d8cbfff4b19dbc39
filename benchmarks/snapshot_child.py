"""A process that would be snapshotted: it prepares a pipeline and does what it is told. Run by snapshots.py.

python benchmarks/snapshot_child.py LIFE FOLDER DEVICE     # commands on its input, JSON on its output
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from children import own_memory

LIVES: dict[str, dict[str, str]] = {
    "weights on the GPU": {},
    "weights deferred": {"weights": "deferred"},
    "weights in memory": {"device": "cpu"},
    "no snapshot": {},
}
"""What the first half of a load is told: all of a plain load, or what precedes a memory snapshot."""


def prepare(life: str, folder: Path, device: str) -> Any:
    from wanstore.loading._load import load_folder as load

    return load(folder, **(LIVES[life] or {"device": device}))


def state() -> dict[str, Any]:
    """The memory that an image would hold, and whether the GPU was asked for anything: the driver then has it open."""
    return {"own_bytes": own_memory("self"), "cuda": any(map(_is_gpu, Path("/proc/self/fd").iterdir()))}


def _is_gpu(descriptor: Path) -> bool:
    with contextlib.suppress(OSError):  # the one that lists them
        return str(descriptor.readlink()).startswith("/dev/nvidia")
    return False


def activate(pipe: Any, device: str) -> dict[str, Any]:
    from wanstore import activate

    activate(pipe, device)
    return synchronize(pipe, device)


def synchronize(pipe: Any, device: str) -> dict[str, Any]:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return {"device": str(pipe.transformer.device)}


def digest(pipe: Any) -> dict[str, Any]:
    """Of all tensors, by the sums of their bits."""
    import torch

    bits = {2: torch.int16, 4: torch.int32}
    sums = [
        int(tensor.view(bits[tensor.itemsize]).sum(dtype=torch.int64))
        for model in (pipe.transformer, pipe.text_encoder, pipe.vae)
        for tensor in model.state_dict().values()
    ]
    return {"digest": hashlib.sha256(json.dumps(sums).encode()).hexdigest()}


def generate(pipe: Any) -> dict[str, Any]:
    """Two steps of the smallest clip: values and speed mean nothing with random weights, running does."""
    import torch

    frames = pipe("A cat walks", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="pt").frames
    return {"finite": bool(torch.isfinite(frames).all()), "shape": list(frames.shape)}


def main(life: str, folder: str, device: str) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print
    pipe = prepare(life, Path(folder), device)
    commands = {
        "state": state,
        "activate": lambda: activate(pipe, device),
        "synchronize": lambda: synchronize(pipe, device),
        "digest": lambda: digest(pipe),
        "generate": lambda: generate(pipe),
    }
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
