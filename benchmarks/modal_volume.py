"""Up to a Modal Volume and down again: wanstore's store against the client's own `modal volume put` and `get`.

    python benchmarks/modal_volume.py [--mb 1000] [--rounds 3]

Both talk to the same control plane on 127.0.0.1, one after the other, in an order that changes from round to
round. So the figures are of this machine's processor and disk, not of Modal's network: what counts is the ratio.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.modal_loopback import ControlPlane
from wanstore.testing.manifests import manifest_of

FILES = 8


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "modal", "volume", *arguments], check=True, stdout=subprocess.DEVNULL)


# wanstore runs in a fresh process as well: starting Python and importing modal count for both.
UP = """
import sys
from pathlib import Path
from wanstore.stores.modal import ModalVolumeStore
from wanstore.manifest import read_manifest
source = Path(sys.argv[2])
with ModalVolumeStore(sys.argv[1]).stage("w") as stage:
    for file in source.iterdir():
        (stage.path / file.name).hardlink_to(file)
    (stage.path / "wanstore.json").unlink()
    stage.seal(read_manifest(source))
"""
DOWN = """
import sys
from wanstore.stores.modal import ModalVolumeStore
ModalVolumeStore(sys.argv[1]).local_path("w")
"""


def wanstore_program(program: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def one_round(folder: Path, source: Path, version: int, first: bool) -> dict[str, float]:
    """Seconds of each way up and down; every way starts with an empty Volume and an empty cache."""
    seconds = {}
    with ControlPlane(folder / "control") as control:
        os.environ.update(MODAL_SERVER_URL=control.url, MODAL_TOKEN_ID="ak-x", MODAL_TOKEN_SECRET="as-x")
        os.environ["WANSTORE_CACHE"] = str(folder / "cache")
        for way in ("modal", "wanstore") if first else ("wanstore", "modal"):
            control.volumes.create(way, version)
            control.volumes.forget_blocks()
            if way == "modal":
                seconds["modal up"] = timed(lambda: command("put", "modal", str(source), "/w"))
                (folder / "got").mkdir()
                seconds["modal down"] = timed(lambda: command("get", "modal", "/w", str(folder / "got")))
            else:
                seconds["wanstore up"] = timed(lambda: wanstore_program(UP, "modal://wanstore", str(source)))
                seconds["wanstore down"] = timed(lambda: wanstore_program(DOWN, "modal://wanstore"))
    for name in ("control", "cache", "got"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return seconds


def main(megabytes: int, rounds: int) -> None:
    print("| Volume | way | client's own MB/s | wanstore MB/s | wanstore, share of the client's |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), Path(name, "source")
        source.mkdir()
        for number in range(FILES):
            (source / f"{number}.safetensors").write_bytes(os.urandom(megabytes * 10**6 // FILES))
        manifest = manifest_of(source, "w")
        from wanstore.manifest import dump_manifest

        (source / "wanstore.json").write_bytes(dump_manifest(manifest))
        for version in (1, 2):
            measured = [one_round(folder, source, version, first=bool(n % 2)) for n in range(rounds)]
            for way in ("up", "down"):
                theirs, ours = (
                    megabytes / statistics.median(m[f"{who} {way}"] for m in measured) for who in ("modal", "wanstore")
                )
                print(f"| v{version} | {way} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.0%} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    main(options.mb, options.rounds)
