"""What each life around a memory snapshot costs, once the process is back.

    python benchmarks/full_size.py FOLDER --dtype float16
    python benchmarks/snapshots.py FOLDER [--out snapshots.json] [--device cuda]

A process prepares a pipeline as it would before a snapshot; then comes the part that follows a restore, timed.
With weights on the GPU that is NVIDIA's checkpoint API bringing them back; with weights in memory or deferred it
is `activate`, the process having stood still meanwhile. The image that a snapshot engine writes and reads back is
not made: its size is told, as the process's own memory at that moment. The files are in page cache. All lives
must end with the same bits. Expect some 2 minutes on a GPU machine.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from children import own_memory
from cuda_checkpoint import CudaCheckpoint
from machine import describe
from page_cache import fill
from snapshot_child import LIVES

CHILD = Path(__file__).with_name("snapshot_child.py")
LIFE_SECONDS = 120
"""Longest for one life; a driver that hangs ends the program 30 seconds later."""
HEADS = ("life", "ready after the restore s", "prepared in s", "image GB", "CUDA before", "host memory after GB",
         "same bits so far", "generates")  # fmt: skip
Row = dict[str, Any]


class Child:
    """The process that lives on around a snapshot; it is ended after the block, or when its time is up."""

    def __init__(self, life: str, folder: Path, device: str) -> None:
        command = [sys.executable, str(CHILD), life, str(folder), device]
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._timer = threading.Timer(LIFE_SECONDS, self.process.kill)

    def __enter__(self) -> Self:
        faulthandler.dump_traceback_later(LIFE_SECONDS + 30, exit=True)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.wait()
        faulthandler.cancel_dump_traceback_later()

    def ask(self, command: str) -> Row:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Row:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process ended, or had to be: its output says why")
        answer: Row = json.loads(line)
        return answer


@contextlib.contextmanager
def timed(row: Row, name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    row[f"{name}_seconds"] = time.monotonic() - began


def live(life: str, folder: Path, device: str, row: Row) -> None:
    """One life: what preceded the snapshot, its image, and what follows it, told in `row` as it comes."""
    with Child(life, folder, device) as child:
        child.answer()
        row["prepare_seconds"] = time.monotonic() - child.began
        before = child.ask("state")
        row |= {"image_bytes": before["own_bytes"], "cuda_before": before["cuda"]}
        if life == "weights on the GPU":
            digest = child.ask("digest")
            _checkpoint(child, row)
            if child.ask("digest") != digest:
                row["error"] = "other bits after the restore"
        elif life != "no snapshot":
            with timed(row, "ready"):
                child.ask("activate")
        row |= {"own_bytes": own_memory(child.process.pid)} | child.ask("digest")
        with timed(row, "generation"):
            row |= child.ask("generate")


def _checkpoint(child: Child, row: Row) -> None:
    driver = CudaCheckpoint(child.process.pid)
    with timed(row, "checkpoint"):
        driver.lock()
        driver.checkpoint()
    row["image_bytes"] = own_memory(child.process.pid)
    with timed(row, "ready"):
        driver.restore()
        driver.unlock()
        child.ask("synchronize")


def main(folder: Path, device: str, out: Path | None) -> None:
    rows: list[Row] = []
    print(f"| {' | '.join(HEADS)} |\n" + "| --- " * len(HEADS) + "|")
    for life in LIVES:
        fill(folder.rglob("*.safetensors"))
        rows.append({"life": life})
        try:
            live(life, folder, device, rows[-1])
        except Exception as error:  # noqa: BLE001  a life that is not possible here is a row of the table
            rows[-1]["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        digests = {row["digest"] for row in rows if "digest" in row}
        print(_line(rows[-1], same=len(digests) == 1), flush=True)
        if out:
            out.write_text(json.dumps({"machine": describe(), "lives": rows}, indent=2))


def _line(row: Row, *, same: bool) -> str:
    """What is known of it; the last cell says why it ended early, if it did."""
    cells = [
        row["life"],
        f"{row['ready_seconds']:.2f}" if "ready_seconds" in row else "",
        f"{row['prepare_seconds']:.1f}" if "prepare_seconds" in row else "",
        f"{row['image_bytes'] / 1e9:.2f}" if "image_bytes" in row else "",
        _yes_or_no(row.get("cuda_before")),
        f"{row['own_bytes'] / 1e9:.2f}" if "own_bytes" in row else "",
        _yes_or_no(same if "digest" in row else None),
        row.get("error") or _yes_or_no(row["finite"]),
    ]
    return f"| {' | '.join(cells)} |"


def _yes_or_no(fact: bool | None) -> str:
    return "" if fact is None else "yes" if fact else "no"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="where the results go, as JSON, as they come")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    main(options.folder, options.device, options.out)
