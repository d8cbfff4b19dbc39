"""Downloads beside the Hub client's own, and setup beside its slowest part, from a Hub on 127.0.0.1.

    python benchmarks/setup_from_hub.py WORKFOLDER [--rate-mb 200] [--setup-only] [--text-encoder-layers 1] [--rounds 3]

The Hub serves files over Xet and, by a certificate of its own (openssl makes it), over HTTPS; with `--rate-mb` at a
network's rate, else as fast as it can. Each row is a fresh process; the order changes from round to round. Imports
count for setup, not for downloads.

The source is of the real shapes with random weights, made in WORKFOLDER if absent: 11 GB with one text encoder layer.
It is in the Hub twice, as files and as xorbs, and downloads come on top: 45 GB of disk. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPO = "bench/full-size"
OVER_HTTPS = {"HF_HUB_DISABLE_XET": "1"}


def fetch(source: str, target: Path) -> None:
    """What setup does of a download: hashed against the Hub's record, noted to be resumed, on the disk."""
    from wanstore.conversion.hub import HubSource
    from wanstore.interfaces import Quiet

    published = HubSource(source)
    for path in [path for path in published.files if path.endswith(".safetensors")]:
        published.release(path, published.fetch(path, target, Quiet()))


def snapshot(source: str, target: Path) -> None:
    """The client's own. It does not hash."""
    from huggingface_hub import snapshot_download

    snapshot_download(source, cache_dir=target, allow_patterns="*.safetensors")


def set_up(source: str, target: Path) -> None:
    import wanstore

    wanstore.setup(source, target, name="w")


STEPS: dict[str, Callable[[str, Path], None]] = {"fetch": fetch, "snapshot": snapshot, "setup": set_up}
DOWNLOADS: dict[str, tuple[str, dict[str, str]]] = {
    "wanstore over Xet": ("fetch", {}),
    "wanstore over HTTPS": ("fetch", OVER_HTTPS),
    "`snapshot_download`": ("snapshot", {}),
    "`snapshot_download`, HF_XET_HIGH_PERFORMANCE": ("snapshot", {"HF_XET_HIGH_PERFORMANCE": "1"}),
    "`snapshot_download` over HTTPS": ("snapshot", OVER_HTTPS),
}


def run(step: str, source: str, target: Path, environment: dict[str, str]) -> tuple[float, float, float, float]:
    """Seconds of the process, of the step itself, CPU seconds of the step, and peak memory in GB."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    began = time.perf_counter()
    command = [sys.executable, __file__, source, "--step", step, "--target", str(target)]
    output = subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(target, ignore_errors=True)
    return (seconds, *json.loads(output.stdout.splitlines()[-1]))


def child(step: str, source: str, target: Path) -> None:
    import huggingface_hub.hf_api  # noqa: F401

    import wanstore.conversion.hub  # noqa: F401

    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    STEPS[step](source, target)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Not ru_maxrss, which a process takes over from the one that started it.
    peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(json.dumps([seconds, cpu, int(peak) * 1024 / 1e9]))


def measure(folder: Path, rate_mb: int | None, layers: int, rounds: int, *, setup_only: bool) -> None:
    from wanstore.testing.hub import LoopbackHub, make_certificate

    source = folder / f"source-{layers}"
    if not (source / "made").exists():
        from full_size import make_full_size

        make_full_size(source, text_encoder_layers=layers, distinct=True)
        (source / "made").touch()
    size = sum(path.stat().st_size for path in source.rglob("*.safetensors")) / 1e9
    content, target = folder / "content", folder / "target"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    rate = rate_mb and rate_mb * 1_000_000
    certificate = make_certificate(folder)
    with LoopbackHub(rate_bytes=rate, xet=content) as hub, LoopbackHub(rate_bytes=rate, certificate=certificate) as tls:
        hub.add_repo(REPO, source)
        tls.add_repo(REPO, source)
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        over_tls = {"HF_ENDPOINT": tls.url, "SSL_CERT_FILE": str(certificate)}
        downloads = list(DOWNLOADS)[: 1 if setup_only else None]
        found: dict[str, list[tuple[float, float, float, float]]] = {
            name: [] for name in [*downloads, "convert", "setup"]
        }
        for number in range(rounds):
            names = list(found)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                step, more = DOWNLOADS.get(name, ("setup", {}))
                variables = environment | more | (over_tls if more is OVER_HTTPS else {})
                found[name].append(run(step, str(source) if name == "convert" else REPO, target, variables))
                print(name, [round(value, 2) for value in found[name][-1]], file=sys.stderr)
    shutil.rmtree(content)
    at = f"at {rate_mb} MB/s" if rate_mb else "as fast as it can"
    print(f"{size:.1f} GB of float32 from a Hub on 127.0.0.1, {at}, {os.cpu_count()} cores, median of {rounds}\n")
    print("| download | s | MB/s | CPU s a GB | peak memory GB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in downloads:
        _, seconds, cpu, memory = (statistics.median(values) for values in zip(*found[name], strict=True))
        print(f"| {name} | {seconds:.1f} | {size * 1000 / seconds:.0f} | {cpu / size:.2f} | {memory:.2f} |")
    alone = {
        "downloading alone, over Xet": statistics.median(row[1] for row in found["wanstore over Xet"]),
        "converting alone, from a folder": statistics.median(row[0] for row in found["convert"]),
    }
    print("\n| step | s | times the slower of the two alone |")
    print("| --- | ---: | ---: |")
    for name, seconds in [*alone.items(), ("setup", statistics.median(row[0] for row in found["setup"]))]:
        print(f"| {name} | {seconds:.1f} | {seconds / max(alone.values()):.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rate-mb", type=int)
    parser.add_argument("--setup-only", action="store_true", help="of the downloads, only the one that setup takes")
    parser.add_argument("--text-encoder-layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        child(options.step, options.folder, options.target)
    else:
        measure(
            Path(options.folder),
            options.rate_mb,
            options.text_encoder_layers,
            options.rounds,
            setup_only=options.setup_only,
        )
