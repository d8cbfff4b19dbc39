"""A class for each form of snapshot, which only says how fast it got ready: what benchmark_modal.py --cold-start calls.

Deployed as `wanstore-cold-start`, because Modal snapshots only deployed apps. A container serves one call, so that each
call finds none. Nothing runs, and nothing is paid for, between calls; `modal app stop wanstore-cold-start` removes it.
"""

from __future__ import annotations

import time
from typing import Any

import modal
from modal_common import DEVICE, NAME, VOLUME, image

APP = "wanstore-cold-start"
ADDRESS = f"modal://{VOLUME}/{NAME}"
GPU = "L4"
STARTUP_SECONDS = 900

app = modal.App(APP, image=image)


def container(memory_gib: int = 16, **form: Any) -> dict[str, Any]:
    """What all forms have in common, and what is special of one."""
    return {
        "gpu": GPU if DEVICE == "cuda" else None,
        "memory": memory_gib * 1024,
        "volumes": {f"/{VOLUME}": modal.Volume.from_name(VOLUME).with_mount_options(read_only=True)},
        "env": {"WANSTORE_DEVICE": DEVICE},
        "startup_timeout": STARTUP_SECONDS,
        "single_use_containers": True,
        **form,
    }


class Form:
    """Gets a pipeline ready, and says when."""

    def load(self) -> Any:
        """The pipeline, as the form has it before the snapshot."""
        raise NotImplementedError

    @modal.method()
    def ready(self) -> dict[str, Any]:
        """When loading began, went on after the snapshot and ended, by this container's clock; what weights took."""
        halves = (self.pipe.load_report, self.pipe.activation_report)
        moved = [[(p.seconds, p.size_bytes) for p in half.phases if p.size_bytes] if half else [] for half in halves]
        return {"began_at": self.began_at, "went_on_at": self.went_on_at, "ready_at": self.ready_at, "weights": moved}


class SnapshotForm(Form):
    """In two halves, with the snapshot between them."""

    @modal.enter(snap=True)
    def prepare(self) -> None:
        self.began_at = time.time()
        self.pipe = self.load()

    @modal.enter(snap=False)
    def finish(self) -> None:
        import wanstore

        self.went_on_at = time.time()
        wanstore.activate(self.pipe, DEVICE)
        self.ready_at = time.time()


@app.cls(**container(enable_memory_snapshot=True, experimental_options={"enable_gpu_snapshot": True}))
class GpuSnapshot(SnapshotForm):
    """The snapshot has the weights on the GPU."""

    def load(self) -> Any:
        import wanstore

        return wanstore.load(ADDRESS, device=DEVICE)


@app.cls(**container(enable_memory_snapshot=True))
class DeferredSnapshot(SnapshotForm):
    """The snapshot has imports and modules; the weights come from the Volume."""

    def load(self) -> Any:
        import wanstore

        return wanstore.load(ADDRESS, device="cpu", weights="deferred")


@app.cls(**container(32, enable_memory_snapshot=True))
class ResidentSnapshot(SnapshotForm):
    """The snapshot has the weights in the container's memory."""

    def load(self) -> Any:
        import wanstore

        return wanstore.load(ADDRESS, device="cpu")


@app.cls(**container())
class NoSnapshot(Form):
    """Everything in each container anew."""

    @modal.enter()
    def prepare(self) -> None:
        self.began_at = self.went_on_at = time.time()
        import wanstore

        self.pipe = wanstore.load(ADDRESS, device=DEVICE)
        self.ready_at = time.time()


FORMS = {
    "gpu": "GpuSnapshot",
    "cpu, weights deferred": "DeferredSnapshot",
    "cpu, weights in memory": "ResidentSnapshot",
    "none": "NoSnapshot",
}
"""Names of the classes, by what they are called on the page."""


def measure(form: str, calls: int) -> dict[str, Any]:
    """Call the deployed class so many times, each time in a fresh container; `ColdStarts` as plain data."""
    one = modal.Cls.from_name(APP, FORMS[form])()
    starts, failures = [], []
    for number in range(calls):
        called_at = time.time()
        try:
            told = one.ready.remote()
        except Exception as error:  # noqa: BLE001 - a restore that crashes is what is looked for
            failures.append(f"call {number + 1}: {error or type(error).__name__}"[:200])
            print(f"{form}, {failures[-1]}", flush=True)
            continue
        starts.append(start_of(form, called_at, told))
        print(f"{form}, call {number + 1}: ready after {starts[-1]['seconds']:.1f} s", flush=True)
    return {"form": form, "starts": starts, "failures": failures}


def start_of(form: str, called_at: float, told: dict[str, Any]) -> dict[str, Any]:
    """`Start` as plain data."""
    restored = form != "none" and told["began_at"] < called_at
    began_at = told["went_on_at" if restored else "began_at"]
    before, after = told["weights"]
    moved = after if restored else [*before, *after]
    return {
        "seconds": told["ready_at"] - called_at,
        "placing": began_at - called_at,
        "loading": told["ready_at"] - began_at,
        "weights": sum(seconds for seconds, _ in moved),
        "size_bytes": sum(size for _, size in moved),
        "restored": restored,
    }
