"""Loading, wanstore against its peers: each load in a fresh process, on the same float16 pipeline folder.

    python benchmarks/full_size.py FOLDER --dtype float16
    python benchmarks/loading.py FOLDER --out loading.json [--cold [WORD ...]] [--runs 1] [--device cuda]

Prints Markdown tables of medians. Every load's tensors are compared with the files'. A way that is not installed,
fails or takes too long is a row with its reason. Expect some 5 minutes on a GPU machine with 16 cores, with --cold
some 8; --budget-seconds ends it in time, with what was measured until then. loading.json is written as the results
come; `python benchmarks/loading_chart.py loading.json CHART.svg` draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from children import Child, Deadline
from loaders import FILE_WAYS, PACKED, PIPELINE_WAYS, Job, sums_of
from loading_tables import tables
from machine import describe
from page_cache import fill, share_cached

HERE = Path(__file__).parent
LOAD_SECONDS = 120
"""Longest for one process."""
READY = "\nif sys.argv[2] == 'cuda':\n    import torch\n    torch.cuda.synchronize()\nprint(time.monotonic())"
STARTS = {
    "wanstore.load": "import sys, time\nimport wanstore\npipe = wanstore.load(sys.argv[1], device=sys.argv[2])" + READY,
    "from_pretrained": "import sys, time\nimport torch\nfrom diffusers import WanPipeline\n"
    "pipe = WanPipeline.from_pretrained(sys.argv[1], dtype=torch.float16).to(sys.argv[2])" + READY,
}
"""What a user's program says, up to a pipeline that is ready."""


class Comparison:
    """What is measured, and what was found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder: Path = options.folder.resolve()
        self.work = self.folder.with_name(self.folder.name + "-work")
        self.device, self.out, self.next = options.device, options.out, options.safetensors_next
        self.deadline = Deadline(options.budget_seconds)
        self.files = [str(path) for path in sorted(self.folder.rglob("*.safetensors"))]
        self.packed: list[str] = []
        self.sums: dict[str, int] = {}
        self.tiny = self.work / "tiny"
        self.found: dict[str, Any] = {
            "machine": describe(),
            "device": self.device,
            "size_bytes": sum(Path(file).stat().st_size for file in self.files),
            "ceilings": {},
            "loads": [],
            "starts": [],
        }

    def prepare(self, ways: list[str]) -> None:
        """Files into page cache, sums, a tiny pipeline; FlashPack's own files; byte code of all imports."""
        self.work.mkdir(exist_ok=True)
        fill(self.files)
        self.sums = sums_of(self.files)
        if not self.tiny.exists():
            code = ("import sys; from pathlib import Path; from wanstore.testing.tiny_wan import make_tiny_wan; "
                    "from wanstore.testing.manifests import seal_as_is; "
                    "seal_as_is(make_tiny_wan(Path(sys.argv[1]), dtype='float16'))")  # fmt: skip
            Child([sys.executable, "-c", code, str(self.tiny)]).run(self.deadline.within(LOAD_SECONDS))
            for code in STARTS.values():  # writes the byte code of all that is imported
                Child([sys.executable, "-c", code, str(self.tiny), "cpu"]).run(self.deadline.within(LOAD_SECONDS))
        if PACKED in ways:
            job = Job("", str(self.work), "", self.files)
            answer = self._step("pack", job).run(self.deadline.within(LOAD_SECONDS))
            self.packed = answer.get("files", [])
        command = [sys.executable, str(HERE / "ceilings.py"), *self.files]
        self.found["ceilings"] = Child(command).run(self.deadline.within(LOAD_SECONDS))
        self.save()

    def load(self, way: str, *, cold: bool) -> None:
        """One load by one way, in a process that has its imports behind it."""
        files = self.packed if way == PACKED else self.files
        row: dict[str, Any] = {"way": way, "state": "cold" if cold else "warm"}
        if not files:
            row["error"] = "its files could not be made"
        else:
            if not cold and share_cached(files) < 1:
                fill(files)
            job = Job(way, str(self.folder), str(self.tiny), files, self.device, cold, self.sums)
            child = self._step("measure", job)
            row |= child.run(self.deadline.within(LOAD_SECONDS))
            if "ended" in row:
                began, ended = row.pop("began"), row.pop("ended")
                row |= {"seconds": ended - began} | child.memory(began, ended)
        self._keep("loads", row)

    def start(self, way: str, *, tiny: bool) -> None:
        """From the start of a process to a ready pipeline; of the tiny one, on the CPU, it is the imports."""
        folder, device = (self.tiny, "cpu") if tiny else (self.folder, self.device)
        if not tiny and share_cached(self.files) < 1:
            fill(self.files)
        child = Child([sys.executable, "-c", STARTS[way], str(folder), device])
        row = {"way": way, "what": "imports" if tiny else "ready"}
        row |= child.run(self.deadline.within(LOAD_SECONDS), answer=lambda line: {"ended": float(line)})
        if "ended" in row:
            row["seconds"] = row.pop("ended") - child.began
        self._keep("starts", row)

    def save(self) -> None:
        if self.out:
            self.out.write_text(json.dumps(self.found, indent=2))

    def _keep(self, kind: str, row: dict[str, Any]) -> None:
        self.found[kind].append(row)
        self.save()
        told = row.get("error") or row.get("wrong") or f"{row['seconds']:.3f} s"
        print(f"{row['way']}, {row.get('state') or row['what']}: {told}", file=sys.stderr, flush=True)

    def _step(self, step: str, job: Job) -> Child:
        environment = {}
        if self.next and "prefetch" in job.way:
            environment["PYTHONPATH"] = os.pathsep.join([self.next, os.environ.get("PYTHONPATH", "")])
        return Child([sys.executable, str(HERE / "loaders.py"), step], job.as_json(), environment)


def main(options: argparse.Namespace) -> None:
    ways = _chosen(options.only)
    cold_ways = [] if options.cold is None else _chosen(options.cold) if options.cold else ways
    comparison = Comparison(options)
    comparison.prepare([*ways, *cold_ways])
    for _ in range(options.runs):
        for way in ways:
            comparison.load(way, cold=False)
        for tiny in (False, True):
            for way in [way for way in STARTS if way in ways]:
                comparison.start(way, tiny=tiny)
        for way in cold_ways:  # last: it takes longest, if time runs out
            comparison.load(way, cold=True)
    print(tables(comparison.found))


def _chosen(words: list[str] | None) -> list[str]:
    """The ways that have one of the words in their name; all without words."""
    return [way for way in (*PIPELINE_WAYS, *FILE_WAYS) if not words or any(word in way for word in words)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a sealed float16 pipeline; FOLDER-work is made beside it")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only the ways that have one of these in their name")
    parser.add_argument(
        "--cold", nargs="*", metavar="WORD",
        help="also with the files dropped from the page cache: the same ways, or those with such a word",
    )  # fmt: skip
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--budget-seconds", type=float, default=570, help="for the whole program")
    parser.add_argument("--safetensors-next", metavar="FOLDER", help="where safetensors 0.9 is installed, if aside")
    main(parser.parse_args())
