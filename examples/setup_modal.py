"""Wan 2.1 from the Hugging Face Hub to a ready float16 pipeline on a Modal Volume.

    pip install modal && modal setup                    # once: an account and a token
    modal run examples/setup_modal.py                   # from the root of a checkout of wanstore
    modal run --detach examples/setup_modal.py          # goes on when this machine goes to sleep
    modal run examples/setup_modal.py --verify          # only read back what is stored, as after that

A function without a GPU downloads the published weights, converts them to float16 and seals the result on the
Volume `anime-models`, where containers find it as /anime-models/wan2.1-fp16. A second container then reads every
file back and compares it with its hash. What was stored and what it cost is printed at the end.

Nothing is done twice: a second run of the same repo and revision has nothing to do but the reading back. What is
downloaded goes to the container's own disk, and only results and the journal to the Volume. A container that dies is
replaced, and the new one goes on after the last converted shard that a commit in the background has saved: a kill costs
the shards under way, at most two of 5 GB, half a minute at 200 MB/s each. A gated or private repo needs a Modal secret
named `huggingface-secret` that holds HF_TOKEN; without one the Hub is asked anonymously.

With --detach Modal keeps alive what was called last, and nothing is called after it: the conversion goes on without
you, the reading back does not. Have it with --verify.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import modal
from modal_common import NAME, REPO, VOLUME, image

from wanstore.benchmarking.cost import PRICES

CORES = 4
MEMORY_GIB = 8
"""Conversion itself needs less than 1 GiB; the rest lets the system keep files in memory."""

app = modal.App("wanstore-setup", image=image)


@app.function(
    cpu=CORES,
    memory=MEMORY_GIB * 1024,
    timeout=6 * 3600,
    retries=modal.Retries(max_retries=8, initial_delay=15.0, backoff_coefficient=1.5),
    # It ends with its one input: nobody pays for an idle container, and its last commit is made before the check.
    single_use_containers=True,
)
def set_up(volume: str, repo: str, revision: str, name: str, replace: bool) -> dict[str, Any]:
    """Download, convert, seal and commit. What another try may mend is raised, so that Modal tries again."""
    import attrs

    import wanstore
    from wanstore.errors import BusyError, WanstoreError

    began = time.monotonic()
    try:
        manifest = wanstore.setup(
            repo,
            f"modal://{volume}",
            name=name,
            revision=revision or None,
            replace=replace,
            # Its own disk is faster than the Volume, and holds 512 GiB.
            keep_source=Path(tempfile.gettempdir(), "source"),
            notes={"attention": attention_backend()},
            progress=Lines(),
        )
    except WanstoreError as error:
        if error.resumable or isinstance(error, BusyError):
            raise
        return {"error": str(error)}
    return {**attrs.asdict(manifest), "size_bytes": manifest.size_bytes, "seconds": time.monotonic() - began}


@app.function(
    cpu=CORES,
    memory=MEMORY_GIB * 1024,
    timeout=3600,
    retries=modal.Retries(max_retries=3, initial_delay=15.0),
    single_use_containers=True,
)
def read_back(volume: str, name: str, waits: list[float]) -> dict[str, Any]:
    """Hash every file of the sealed pipeline again, in a container that has seen nothing of its making."""
    import attrs

    import wanstore
    from wanstore.errors import NotFoundError

    while True:
        try:
            report = wanstore.open_store(f"modal://{volume}").verify(name)
        except NotFoundError as error:
            if not waits:
                return {"error": str(error)}
            time.sleep(waits.pop(0))  # another container's commit may take a moment to come into view
        else:
            return {**attrs.asdict(report), "ok": report.ok}


def attention_backend() -> str:
    """The attention backend to ask for at load: xformers if its CUDA extensions fit this image's torch.

    More than that cannot be said without a GPU. `wanstore.load` tries the backend on the GPU, and falls back to
    torch's own if it fails there.
    """
    try:
        # Here no snapshot is taken: it does no harm that the import asks for CUDA.
        from xformers import _cpp_lib
    except ImportError as error:
        print(f"attention: native, since xformers cannot be imported ({error})")
        return "native"
    if _cpp_lib._cpp_library_load_exception is not None:
        print("attention: native, since xformers was built for another torch")
        return "native"
    return "xformers"


class Lines:
    """A progress for logs: a line for each tenth of a long task."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self._totals[task], self._done[task] = total, 0

    def advance(self, task: str, amount: int) -> None:
        before, total = self._done[task], max(self._totals[task], 1)
        self._done[task] = before + amount
        if total > 10**8 and before * 10 // total < self._done[task] * 10 // total:
            print(f"{task}: {self._done[task] / 1e9:.1f} of {total / 1e9:.1f} GB", flush=True)

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None:
        print(text, flush=True)


@app.local_entrypoint()
def main(
    repo: str = REPO,
    revision: str = "",
    name: str = NAME,
    volume: str = VOLUME,
    replace: bool = False,
    verify: bool = False,
) -> None:
    if verify:
        check_again(volume, name)
        return
    mounted = {f"/{volume}": modal.Volume.from_name(volume, create_if_missing=True)}
    stored = set_up.with_options(volumes=mounted, secrets=hugging_face_secrets()).remote(
        volume, repo, revision, name, replace
    )
    if "error" in stored:
        sys.exit(stored["error"])
    found = read_back.with_options(volumes=mounted).remote(volume, name, [5, 10, 20])
    if "error" in found:
        sys.exit(f"{found['error']} Its commit was lost: run this again.")
    print_summary(volume, stored, found)
    if not found["ok"]:
        sys.exit(f"{name} is damaged. Run this again with --replace.")


def check_again(volume: str, name: str) -> None:
    """Read back what is stored. Status 1 unless all of it is whole."""
    mounted = {f"/{volume}": modal.Volume.from_name(volume).with_mount_options(read_only=True)}
    try:
        found = read_back.with_options(volumes=mounted).remote(volume, name, [])
    except modal.exception.NotFoundError:
        sys.exit(f"There is no Volume {volume}. Run this without --verify first")
    if "error" in found:
        sys.exit(found["error"])
    print(f"{volume}/{name}: {found['files']} files, {'all whole' if found['ok'] else 'NOT whole'}")
    if not found["ok"]:
        sys.exit(f"{name} is damaged. Run this again with --replace.")


def hugging_face_secrets() -> list[modal.Secret]:
    """The account's `huggingface-secret`, if there is one."""
    secret = modal.Secret.from_name("huggingface-secret")
    try:
        secret.hydrate()
    except modal.exception.NotFoundError:
        return []
    return [secret]


def print_summary(volume: str, stored: dict[str, Any], found: dict[str, Any]) -> None:
    source, gib = stored["source"], stored["size_bytes"] / 2**30
    seconds = stored["seconds"] + found["seconds"]
    usd = PRICES.usd(seconds, cores=CORES, memory_gib=MEMORY_GIB)
    print(f"""
stored     {volume}/{stored["name"]}: {len(stored["files"])} files, {stored["size_bytes"] / 1e9:.2f} GB
source     {source["location"]} at {source["commit"]}
attention  {stored["notes"].get("attention", "not recorded")}
read back  {found["files"]} files by a second container: {"all whole" if found["ok"] else "NOT whole"}
cost       about ${usd:.4f} for {seconds:.0f} s of {CORES} cores and {MEMORY_GIB} GiB, without the containers' starts;
           ${gib * PRICES.volume_gib_month:.2f} a month on the Volume (prices of {PRICES.date}); nothing while the
           workspace's Volumes hold less than {PRICES.volume_free_gib:.0f} GiB
load it    wanstore.load("modal://{volume}/{stored["name"]}")""")
