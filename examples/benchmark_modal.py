"""What each preset costs on the GPU of production: a container for each preset, one table at the end.

    modal run examples/benchmark_modal.py                                   # after examples/setup_modal.py
    modal run examples/benchmark_modal.py --gpu H100 --presets 480p/3s,480p/5s

Run it from the root of a checkout with wanstore installed: `pip install -e '.[modal]'`. It prints the table and writes
docs/benchmarks.md and docs/benchmarks.json, which examples/endpoint_modal.py reads its safe preset from. Each preset
gets a fresh container, so that none inherits another's memory or warm caches, and all of them run side by side.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import modal
from modal_common import DEVICE, NAME, VOLUME, image, preset_to_run

from wanstore.benchmarking.cost import PRICES

GPU = "L4"
CORES, MEMORY_GIB = 2, 16
ATTENTION = "auto"
"""Compares the backends that work and takes the fastest. Seconds, beside minutes for a clip."""

app = modal.App("wanstore-benchmark", image=image)


@app.function(
    gpu=GPU if DEVICE == "cuda" else None,
    cpu=CORES,
    memory=MEMORY_GIB * 1024,
    env={"WANSTORE_DEVICE": DEVICE},
    timeout=3 * 3600,
    single_use_containers=True,
)
def measure(volume: str, name: str, preset: str) -> tuple[Any, float]:
    """The report of one preset, and the seconds that it took with the loading."""
    from wanstore.api import bench

    began = time.monotonic()
    report = bench(f"modal://{volume}/{name}", presets=[preset_to_run(preset)], device=DEVICE, attention=ATTENTION)
    return report, time.monotonic() - began


@app.local_entrypoint()
def main(
    presets: str = "", gpu: str = GPU, name: str = NAME, volume: str = VOLUME, out: str = "docs/benchmarks.md"
) -> None:
    import attrs

    from wanstore.benchmarking.page import check_page, summary, write
    from wanstore.presets import PRESETS, preset_named

    names = [preset_named(wanted).name for wanted in presets.split(",") if wanted] or list(PRESETS)
    check_page(Path(out))  # before a GPU is paid for
    where: dict[str, Any] = {
        "volumes": {f"/{volume}": modal.Volume.from_name(volume).with_mount_options(read_only=True)}
    }
    if DEVICE == "cuda":
        where["gpu"] = gpu
    results = list(measure.with_options(**where).starmap((volume, name, preset) for preset in names))
    report = attrs.evolve(results[0][0], rows=tuple(row for part, _ in results for row in part.rows))

    write(report, Path(out))
    print(summary(report))
    print(cost(sum(seconds for _, seconds in results), gpu if DEVICE == "cuda" else ""))
    print(f"{out} is written")


def cost(seconds: float, gpu: str) -> str:
    if gpu and gpu not in PRICES.gpu_second:
        return f"{seconds:.0f} s of {gpu}, whose price is not in wanstore's table"
    usd = PRICES.usd(seconds, cores=CORES, memory_gib=MEMORY_GIB, gpu=gpu)
    return f"{seconds:.0f} s of {gpu or 'CPU'} for about ${usd:.4f} (prices of {PRICES.date})"
