"""From a bucket to a device: wanstore without and with its cache, against run:ai's streamer.

    python benchmarks/full_size.py FOLDER --dtype float16
    python benchmarks/streaming.py FOLDER [--runs 1] [--device cuda] [--connection-mb 90] [--out streaming.json]

The bucket is a folder's files on 127.0.0.1, as quick as `sendfile`; --connection-mb limits each connection, as S3 does.
Each load is a fresh process that has its imports, and the device's start, behind it. wanstore hashes every byte and
gives a whole pipeline; the streamer gives tensors. What came is compared with the files by sums.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from children import Child, Deadline
from machine import describe
from page_cache import fill
from s3_server import BUCKET, FolderBucket

ID = "files-" + "0" * 32
SECONDS = 150
"""Longest for one load."""
WAYS = ("wanstore, without a cache", "wanstore, with an empty cache", "run:ai streamer")


def measure(way: str, tiny: str, url: str, files: list[str], device: str) -> dict[str, Any]:
    """One load: seconds, and a sum over all tensors' bytes."""
    import torch

    weights = None
    if way.startswith("wanstore"):
        import obstore.store  # noqa: F401

        import wanstore
        from wanstore.loading._load import load_folder

        load_folder(Path(tiny), device="cpu")
        if device == "cuda":
            torch.zeros(1, device=device)
        began = time.monotonic()
        pipe = wanstore.load(url, device=device, cache="without" not in way)
        _finish(device)
        ended = time.monotonic()
        weights = pipe.load_report.phase("weights").seconds
        models = (pipe.text_encoder, pipe.transformer, pipe.vae)
        tensors = {t.data_ptr(): t for model in models for t in model.parameters()}.values()
    else:
        from runai_model_streamer import SafetensorsStreamer

        place = "cuda:0" if device == "cuda" else device
        torch.zeros(1, device=device)
        began = time.monotonic()
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files, device=place)
            tensors = [tensor.to(place) for _, tensor in streamer.get_tensors()]
        _finish(device)
        ended = time.monotonic()
    total = sum(int(tensor.detach().to(torch.float16).view(torch.int16).sum(dtype=torch.int64)) for tensor in tensors)
    return {"began": began, "ended": ended, "weights": weights, "sum": total}


def _finish(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def main(options: argparse.Namespace) -> None:
    folder = options.folder.resolve()
    files = sorted(folder.rglob("*.safetensors"))
    fill([str(file) for file in files])
    deadline = Deadline(options.budget_seconds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        root, tiny = Path(work, "bucket"), Path(work, "tiny")
        place = root / "wan" / folder.name
        place.mkdir(parents=True)
        (place / ID).symlink_to(folder)
        (place / "sealed.json").write_text(json.dumps({"folder": ID}))
        _make_tiny(tiny)
        url = f"s3://{BUCKET}/wan/{folder.name}"
        paths = [f"{url}/{ID}/{file.relative_to(folder).as_posix()}" for file in files]
        limit = options.connection_mb * 1e6
        with FolderBucket(root, connection_bytes_a_second=limit) as bucket:
            for _ in range(options.runs):
                for way in WAYS:
                    cache = Path(tempfile.mkdtemp(dir=options.cache or work))
                    environment = {**bucket.environment, "WANSTORE_CACHE": str(cache)}
                    job = json.dumps([way, str(tiny), url, paths, options.device])
                    child = Child([sys.executable, __file__, "--measure"], job, environment)
                    row = {"way": way, **child.run(deadline.within(SECONDS))}
                    if "ended" in row:
                        began, ended = row.pop("began"), row.pop("ended")
                        row |= {"seconds": ended - began} | child.memory(began, ended)
                    rows.append(row)
                    print(row, file=sys.stderr, flush=True)
                    shutil.rmtree(cache)
                    os.sync()
    size = sum(file.stat().st_size for file in files)
    if options.out:
        found = {"machine": describe(), "size_bytes": size, "connection_mb": options.connection_mb, "loads": rows}
        options.out.write_text(json.dumps(found, indent=2))
    print("| way | s | GB/s | weights, s |\n| --- | ---: | ---: | ---: |")
    for way in WAYS:
        done = [row for row in rows if row["way"] == way and "seconds" in row]
        if done:
            seconds = statistics.median(row["seconds"] for row in done)
            weights = statistics.median(row["weights"] or row["seconds"] for row in done)
            print(f"| {way} | {seconds:.2f} | {size / seconds / 1e9:.2f} | {weights:.2f} |")
        else:
            print(f"| {way} | {next(row['error'] for row in rows if row['way'] == way)} | | |")
    if len({row["sum"] for row in rows if "sum" in row}) > 1:
        sys.exit("the sums differ")


def _make_tiny(folder: Path) -> None:
    from wanstore.testing.manifests import seal_as_is
    from wanstore.testing.tiny_wan import make_tiny_wan

    seal_as_is(make_tiny_wan(folder, dtype="float16"))


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure(*json.load(sys.stdin))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("folder", type=Path)
        parser.add_argument("--runs", type=int, default=1)
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--connection-mb", type=float, default=0.0)
        parser.add_argument("--cache", type=Path, help="a folder for caches, on the disk that is to be measured")
        parser.add_argument("--budget-seconds", type=float, default=600.0)
        parser.add_argument("--out", type=Path)
        main(parser.parse_args())
