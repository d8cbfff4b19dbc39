"""Memory plans: each preset under caps of a GPU's memory, by wanstore's plans and by diffusers' own offloading.

    python benchmarks/full_size.py FOLDER --dtype float16
    python benchmarks/memory.py FOLDER --out memory.json [--steps 3] [--ways WAY ...] [--presets 480p/3s ...]

Each way runs in a process of its own, the presets one after another, each with a prompt of its own. Few denoising steps
are run and the rest of 50 is extrapolated by their median. Frames are compared with those of the first way, which has
all of the GPU. Prints a Markdown table; memory.json is written as results come. Needs a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from children import Child, Deadline
from machine import describe

from wanstore.memory._estimate import GIB
from wanstore.presets import PRESETS


@attrs.frozen
class Way:
    """A way to fit a clip into memory: what torch is held to, how the pipeline is loaded, and what is done to it."""

    name: str
    cap_gib: float | None = None
    load: dict[str, Any] = attrs.field(factory=dict)
    then: str = ""
    presets: tuple[str, ...] = tuple(PRESETS)


SOME = ("480p/3s", "720p/5s")
WAYS = [
    Way("resident", load={"memory": "resident"}),
    Way("auto, 22 GiB", 22, {"memory": "auto"}),
    Way("resident, 22 GiB", 22, {"memory": "resident"}, presets=SOME),
    Way("auto, 16 GiB", 16, {"memory": "auto"}, presets=("480p/3s", "480p/5s")),
    Way("auto, VAE in float32, 22 GiB", 22, {"memory": "auto", "dtype": {"vae": "float32"}}, presets=SOME),
    Way("model offload, 22 GiB", 22, {"device": "cpu"}, "enable_model_cpu_offload", ("480p/3s",)),
    Way("group offload, 22 GiB", 22, {"device": "cpu"}, "enable_group_offload", ("480p/3s",)),
    Way("sequential offload, 22 GiB", 22, {"device": "cpu"}, "enable_sequential_cpu_offload", ("480p/3s",)),
]


def main(options: argparse.Namespace) -> None:
    deadline = Deadline(options.budget_seconds)
    found: dict[str, Any] = {"machine": describe(), "steps": options.steps, "ways": {}}
    with tempfile.TemporaryDirectory(dir=options.folder.parent) as frames:
        for way in WAYS:
            if options.ways and way.name not in options.ways:
                continue
            names = [name for name in way.presets if not options.presets or name in options.presets]
            job = {"folder": str(options.folder), "way": attrs.asdict(way), "presets": names, "steps": options.steps,
                   "frames": frames}  # fmt: skip
            child = Child([sys.executable, __file__, "--child"], json.dumps(job))
            found["ways"][way.name] = child.run(deadline.within(300))
            print(way.name, json.dumps(found["ways"][way.name]), file=sys.stderr, flush=True)
            if options.out:
                options.out.write_text(json.dumps(found, indent=2))
    print("\n".join(table(found)))


def table(found: dict[str, Any]) -> Iterator[str]:
    yield "| preset | way | plan | s a clip | times resident | peak GiB | predicted | frames |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
    whole = found["ways"].get("resident", {})
    for preset in PRESETS:
        for way, rows in found["ways"].items():
            row = rows.get(preset)
            if row is None:
                continue
            start = f"| {preset} | {way} | {row.get('plan', '')} |"
            if "error" in row:
                yield f"{start} {row['error']} | | | | |"
                continue
            base = whole.get(preset, {}).get("seconds")
            times = f"{row['seconds'] / base:.3f}" if base else ""
            peaks, predicted = row["peaks_gib"], row.get("predicted_gib", {})
            guess = f"{max(predicted.values()):.1f}" if predicted else ""
            yield f"{start} {row['seconds']:.1f} | {times} | {max(peaks.values()):.1f} | {guess} | {row['frames']} |"


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: a row for each preset."""
    import torch

    import wanstore
    from wanstore.generation import generate

    way = Way(**job["way"])
    if way.cap_gib:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(way.cap_gib * GIB / total)
    began = time.perf_counter()
    pipe = wanstore.load(job["folder"], **way.load)
    if way.then == "enable_group_offload":
        pipe.enable_group_offload(
            onload_device=torch.device("cuda"), offload_device=torch.device("cpu"), offload_type="leaf_level",
            use_stream=True,
        )  # fmt: skip
    elif way.then:
        getattr(pipe, way.then)()
    rows: dict[str, Any] = {"load_seconds": time.perf_counter() - began}
    for name in job["presets"]:
        preset = attrs.evolve(PRESETS[name], steps=job["steps"])
        small = attrs.evolve(preset, steps=1, frames=5)
        try:
            generate(pipe, "Once, so that all is set up.", small)
            rows[name] = _clip(pipe, name, lambda preset=preset, **how: generate(pipe, **how, preset=preset), job)
        except (torch.OutOfMemoryError, wanstore.WanstoreError, RuntimeError) as error:
            if "memory" not in str(error) and "memory" not in type(error).__name__:
                raise
            rows[name] = {"error": "out of memory" if isinstance(error, RuntimeError) else str(error)}
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def _clip(pipe: Any, name: str, make: Callable[..., Any], job: dict[str, Any]) -> dict[str, Any]:
    import torch

    progress = Steps()
    with phase_peaks(pipe) as peaks:
        began = time.perf_counter()
        frames = make(prompt=f"A clip of {name}.", progress=progress)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    steps = [after - before for before, after in zip(progress.at, progress.at[1:], strict=False)]
    step = sorted(steps)[len(steps) // 2]
    row = {
        "seconds": seconds + (PRESETS[name].steps - job["steps"]) * step,
        "step_seconds": step,
        "without_steps_seconds": seconds - len(progress.at) * step,
        "peaks_gib": {phase: peak / GIB for phase, peak in peaks.items()},
        "frames": compare(frames, Path(job["frames"]) / f"{name.replace('/', '-')}.npy"),
    }
    plan = getattr(pipe, "memory_plan", None)
    if plan is not None:
        predicted = pipe.predicted_peaks(PRESETS[name].clip)
        row |= {"plan": str(plan), "predicted_gib": {phase: peak / GIB for phase, peak in predicted.items()}}
    return row


@contextmanager
def phase_peaks(pipe: Any) -> Iterator[dict[str, int]]:
    """What torch's allocator handed out at most, by phase; filled when the block is over."""
    import torch

    peaks: dict[str, int] = {}

    def ends(phase: str) -> None:
        peaks[phase] = max(peaks.get(phase, 0), torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()

    def around(function: Any, before: str, phase: str) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            ends(before)
            result = function(*args, **kwargs)
            ends(phase)
            return result

        return watched

    pipe.encode_prompt = around(pipe.encode_prompt, "text_encoding", "text_encoding")
    pipe.vae.decode = around(pipe.vae.decode, "denoising", "decoding")
    torch.cuda.reset_peak_memory_stats()
    try:
        yield peaks
    finally:
        del pipe.encode_prompt, pipe.vae.decode
    ends("after")


class Steps:
    """Notes when denoising steps end."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def start(self, task: str, total: int, unit: str = "bytes") -> None: ...

    def advance(self, task: str, amount: int) -> None:
        import torch

        torch.cuda.synchronize()
        self.at.append(time.perf_counter())

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None: ...


def compare(frames: Any, path: Path) -> str:
    """How they differ from those in the file; the first ones are put there."""
    import numpy as np

    if not path.exists():
        np.save(path, frames)
        return "the reference"
    return differs(frames, np.load(path, mmap_mode="r"))


def differs(frames: Any, wanted: Any, span: int = 1) -> str:
    """How far two clips are apart whose values, floats, have that span."""
    import numpy as np

    if np.array_equal(frames, wanted):
        return "identical"
    error = float(np.mean((frames - wanted) ** 2, dtype=np.float64)) / span**2
    return f"PSNR {-10 * np.log10(error):.0f} dB"


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        print(json.dumps(measure(json.loads(sys.stdin.read()))))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a sealed float16 pipeline")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps of a clip, two at least")
    parser.add_argument("--ways", nargs="+", metavar="WAY", choices=[way.name for way in WAYS])
    parser.add_argument("--presets", nargs="+", metavar="PRESET", choices=list(PRESETS))
    parser.add_argument("--budget-seconds", type=float, default=900, help="for the whole program")
    main(parser.parse_args())
