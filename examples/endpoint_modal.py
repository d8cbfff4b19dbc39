"""A serving app for Wan 2.1 on Modal: text in, an mp4 out, jobs for what takes long, and a way to get through a rush.

    modal deploy examples/endpoint_modal.py         # after examples/setup_modal.py, better after benchmark_modal.py too

From Python, anywhere with a Modal token and nothing but `modal`:

    make = modal.Function.from_name("wanstore-endpoint", "make")
    made = make.remote(prompt="a red fox runs through deep snow", preset="480p/3s")
    open("fox.mp4", "wb").write(made["mp4"])

    submit = modal.Function.from_name("wanstore-endpoint", "submit")         # for what takes longer than a plain call
    job = submit.remote(prompt="a red fox runs through deep snow", preset="720p/5s")
    made = modal.FunctionCall.from_id(job["id"]).get()                       # tomorrow, from another machine

By HTTP, with a proxy token of the workspace (modal.com/settings/proxy-auth-tokens). After 150 s Modal redirects a
plain call to where the answer will be, so curl needs -L:

    URL=https://WORKSPACE--wanstore-endpoint-web.modal.run
    TOKEN=(-H "Modal-Key: $KEY" -H "Modal-Secret: $SECRET")
    curl -L -o fox.mp4 "${TOKEN[@]}" --json '{"prompt": "a red fox runs through deep snow"}' $URL/clip
    curl "${TOKEN[@]}" --json '{"prompt": "a red fox", "preset": "720p/5s"}' $URL/clips   # 202: {"id": "fc-...", ...}
    curl -o fox.mp4 "${TOKEN[@]}" $URL/clips/fc-...                     # 202 while it is made, then 200 and the mp4

**What is accepted.** Arguments are checked on a CPU, before a GPU wakes. What takes longer than a plain call may
(`PLAIN_SECONDS`) is refused there, and accepted as a job; what Modal's limit of a day does not hold is refused, and so
is a preset that did not work when it was measured. What a clip takes is read, when you deploy, from
docs/benchmarks.json, if that is a complete report of this GPU on the trained model, and estimated otherwise. Errors
reach a caller as built-in exceptions.

**Degraded mode.** When the queue gets long, clips are made by the safe preset, and the answer says so; a request with
`may_degrade=False` keeps its own. A queue that is too long refuses. See `wanstore.degrade`, and `POLICY` below. The
safe preset is the report's, so without such a report none is taken (or set WANSTORE_SAFE_PRESET).

**Cold starts.** A container is snapshotted once its first half is over, and later ones start from there. Each form of
snapshot is a class of its own, and one of them is called:

- `gpu` (the default): the snapshot has the weights on the GPU. By arithmetic it is the only one that can be ready in
  5 s: the weights alone take 6 s at a Volume's 2.5 GB/s. Modal calls it alpha, and others have seen restores crash.
- `cpu`: imports and modules without weights; the weights come from the Volume. Nothing in it may ask for CUDA.
- `none`: everything anew.

A call whose container dies is made again by the next of them, which is called from then on. To choose, at any time and
without deploying again: `modal run examples/endpoint_modal.py --snapshot gpu`.

**Compiled blocks.** What examples/benchmark_modal.py has compiled for this GPU and these versions lies beside the
pipeline, and makes clips of the presets quicker. It is code: whoever can write to the Volume can run code here. Without
it clips are made as they are.

**A new pipeline under the same name** (`setup_modal.py --replace`) is noticed before the next clip, by every container
and in every form: it loads what is there now, which takes a cold start's time once.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
from modal_common import DEVICE, NAME, VOLUME, image, preset_to_run

from wanstore.benchmarking.estimate import clip_seconds
from wanstore.benchmarking.plan import DAY_SECONDS, MARGIN, minutes
from wanstore.degrade import Decision, Option, Policy, Queue, State, decide, next_state, smoothed
from wanstore.presets import PRESETS

APP = "wanstore-endpoint"
ADDRESS = f"modal://{VOLUME}/{NAME}"
GPU = "L4"
BENCHMARKS = Path("docs/benchmarks.json")
POLICY = Policy()
PLAIN_SECONDS = 15 * 60
"""The longest clip of a plain call, by the slow end of what is known: a caller waits for it."""
STARTUP_SECONDS = 900
"""Until a container is ready. A guess on the safe side."""

FORMS = {"gpu": "GpuSnapshot", "cpu": "CpuSnapshot", "none": "NoSnapshot"}
"""Forms of snapshot and their classes, each the way back from the one before it."""


def settings() -> dict[str, Any]:
    """What was decided when the app was deployed: seconds by preset, safe preset, attention, form of snapshot."""
    seconds = {name: clip_seconds(preset, GPU) or (0, DAY_SECONDS) for name, preset in PRESETS.items()}
    failed: dict[str, str] = {}
    safe, attention, told = "", "", "clips are estimated, and none is degraded"
    report = json.loads(BENCHMARKS.read_text()) if BENCHMARKS.is_file() else {}
    unfit = [key for key in ("full_size", "trained", "complete") if not report.get(key)]
    if report.get("gpu") != GPU:
        told = f"{BENCHMARKS} is no report of an {GPU}: {told}"
    elif unfit:
        told = f"{BENCHMARKS} is not {' and '.join(unfit).replace('_', ' ')}: {told}"
    else:
        rows = {row["preset"]["name"]: row for row in report["rows"] if row["preset"]["name"] in seconds}
        failed = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
        seconds |= {name: (row["clip_seconds"],) * 2 for name, row in rows.items() if name not in failed}
        used = [row["attention"] for name, row in rows.items() if name not in failed]
        safe, attention = report["safe_preset"] or "", max(used, key=used.count, default="")
        told = f"by {BENCHMARKS}: safe preset {safe or 'none'}, attention {attention or 'as setup noted'}"
    print(told)
    return {
        "seconds": seconds,
        "failed": failed,
        "safe": os.environ.get("WANSTORE_SAFE_PRESET") or safe,
        "attention": os.environ.get("WANSTORE_ATTENTION") or attention,
        "snapshot": os.environ.get("WANSTORE_SNAPSHOT") or "gpu",
    }


# Containers have no docs/: they are told by their environment.
SETTINGS = json.loads(os.environ["WANSTORE_ENDPOINT"]) if "WANSTORE_ENDPOINT" in os.environ else settings()
if SETTINGS["snapshot"] not in FORMS:
    sys.exit(f"WANSTORE_SNAPSHOT is {SETTINGS['snapshot']!r}: use one of {', '.join(FORMS)}")
if SETTINGS["safe"] and SETTINGS["safe"] not in PRESETS:
    sys.exit(f"WANSTORE_SAFE_PRESET is {SETTINGS['safe']!r}: use one of {', '.join(PRESETS)}")
ENVIRONMENT = {"WANSTORE_DEVICE": DEVICE, "WANSTORE_ENDPOINT": json.dumps(SETTINGS)}


def limit_seconds(preset: str) -> float:
    """When a clip is given up on: its slow end with a margin, and time to read components back."""
    return float(SETTINGS["seconds"][preset][1]) * MARGIN + 300


WEB_PACKAGES = ("fastapi==0.165.0", "attrs==26.1.0")
"""All that the CPU functions' image has besides wanstore's own modules, which there may import no more than these."""

web_image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(*WEB_PACKAGES)
    .add_local_python_source("wanstore", ignore=["**/__pycache__"])
    .add_local_python_source("modal_common", "clip_request", "clip_service")
)
app = modal.App(APP)


# --- on the GPU


def built_in_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """A caller can only be told by exceptions that it can import: whatever else there is becomes a RuntimeError."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if type(error).__module__ == "builtins":
                raise
            raise RuntimeError(f"{error or type(error).__name__}") from None

    return call


class Deadline:
    """A progress that gives a clip up: one that is not done in time would hold the GPU for hours."""

    def __init__(self, preset: str) -> None:
        self._ends = time.monotonic() + limit_seconds(preset)
        self._told = f"{preset} was not done in {minutes(limit_seconds(preset))} minutes, and was given up"

    def start(self, task: str, total: int, unit: str = "bytes") -> None: ...

    def advance(self, task: str, amount: int) -> None:
        if time.monotonic() > self._ends:
            raise TimeoutError(self._told)

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None: ...


class Generator:
    """Makes one clip at a time: a second one would not make the GPU any faster."""

    def load(self, *, deferred: bool = False) -> None:
        """What is stored now, and which it is; `deferred` leaves the weights, and the GPU, to `get_ready`."""
        import wanstore

        digest = self.stored()
        device, weights = ("cpu", "deferred") if deferred else (DEVICE, "resident")
        self.pipe = wanstore.load(
            ADDRESS,
            device=device,
            weights=weights,
            attention=SETTINGS["attention"] or None,
            compile="cached",  # what benchmark_modal.py has left on the Volume, if it fits
        )
        self.digest = digest
        print(self.pipe.load_report, flush=True)

    def stored(self) -> str:
        """The digest of the pipeline that is on the Volume now."""
        import wanstore

        try:
            modal.Volume.from_name(VOLUME).reload()
        except RuntimeError as error:  # a file is open: the Volume stays as it was
            print(f"the Volume was not looked at again: {error}", flush=True)
        return wanstore.open_store(f"modal://{VOLUME}").manifest(NAME).digest

    def load_anew(self) -> None:
        """The new pipeline in place of the old one, which goes first: both have no space on the GPU."""
        import gc

        import torch

        print(f"{NAME} was replaced: loading what is there now", flush=True)
        self.pipe, self.digest = None, ""  # if the new one cannot be loaded now, the next call tries again
        gc.collect()
        torch.cuda.empty_cache()
        self.load()

    def get_ready(self) -> None:
        """What each container needs anew: random seeds, weights on its GPU, the attention backend."""
        import wanstore
        from wanstore.errors import ChangedError

        try:
            if self.stored() == self.digest:
                wanstore.activate(self.pipe, DEVICE)
            else:
                self.load_anew()
        except ChangedError:
            self.load_anew()
        if self.pipe.activation_report:
            print(self.pipe.activation_report, flush=True)

    @modal.method()
    @built_in_errors
    def generate(self, request: dict[str, Any], preset: str) -> dict[str, Any]:
        """A clip of a checked request as `mp4`, by that preset, and its `seconds`."""
        from clip_request import checked

        from wanstore.errors import ChangedError, NotFoundError

        asked, began = checked(request), time.monotonic()
        if self.stored() != self.digest:
            self.load_anew()
        try:
            mp4 = self.clip(asked, preset)
        except (ChangedError, NotFoundError):  # replaced in the middle of a clip
            self.load_anew()
            mp4 = self.clip(asked, preset)
        return {"mp4": mp4, "seconds": time.monotonic() - began}

    def clip(self, asked: Any, preset: str) -> bytes:
        from wanstore.generation import generate, write_clip

        frames = generate(
            self.pipe,
            asked.prompt,
            preset_to_run(preset),
            negative_prompt=asked.negative_prompt,
            seed=asked.seed,
            progress=Deadline(preset),
        )
        with tempfile.TemporaryDirectory() as folder:
            write_clip(frames, Path(folder, "clip.mp4"))
            return Path(folder, "clip.mp4").read_bytes()


GENERATOR: dict[str, Any] = {
    "image": image,
    "gpu": GPU if DEVICE == "cuda" else None,
    "memory": 16 * 1024,
    # Nothing is written: a container that cannot write cannot break what the others load.
    "volumes": {f"/{VOLUME}": modal.Volume.from_name(VOLUME).with_mount_options(read_only=True)},
    "env": ENVIRONMENT,
    "timeout": int(min(max(map(limit_seconds, PRESETS)) + 60, DAY_SECONDS)),  # if the clip's own deadline does not hold
    "startup_timeout": STARTUP_SECONDS,
    "scaledown_window": 300,  # an idle GPU is paid for this long
    "max_containers": 4,  # a rush costs no more than this; what is beyond it, waits
}


@app.cls(**GENERATOR, enable_memory_snapshot=True, experimental_options={"enable_gpu_snapshot": True})
class GpuSnapshot(Generator):
    """The snapshot has the weights on the GPU."""

    @modal.enter(snap=True)
    def prepare(self) -> None:
        self.load()

    @modal.enter(snap=False)
    def finish(self) -> None:
        self.get_ready()


@app.cls(**GENERATOR, enable_memory_snapshot=True)
class CpuSnapshot(Generator):
    """The snapshot has imports and modules, and never asked for CUDA."""

    @modal.enter(snap=True)
    def prepare(self) -> None:
        self.load(deferred=True)

    @modal.enter(snap=False)
    def finish(self) -> None:
        self.get_ready()


@app.cls(**GENERATOR)
class NoSnapshot(Generator):
    """Loads everything in each container."""

    @modal.enter()
    def prepare(self) -> None:
        self.load()


# --- on a CPU: what is accepted, and by which preset


class Shared:
    """What all containers of the app know together: the mode, the average clip, the form of snapshot, the jobs.

    Modal forgets an entry that nobody has read or written for a week, as it does the results of jobs.
    """

    def __init__(self) -> None:
        self.values = modal.Dict.from_name(APP, create_if_missing=True)

    @property
    def snapshot(self) -> str:
        return str(self.values.get("snapshot", SETTINGS["snapshot"]))

    def generator(self) -> Any:
        return globals()[FORMS[self.snapshot]]()


def expected_seconds(preset: str) -> float:
    quick, slow = SETTINGS["seconds"][preset]
    return float(quick + slow) / 2


def accept(request: Any, shared: Shared, *, plain: bool) -> tuple[dict[str, Any], Decision, float]:
    """The checked request, the decision on it, and the seconds until its clip is there.

    Raises `ValueError` for what is wrong or takes too long, and `RuntimeError` while the queue is too long.
    """
    from clip_request import checked

    asked = checked(request)
    slow = float(SETTINGS["seconds"][asked.preset][1])
    if asked.preset in SETTINGS["failed"]:
        why = SETTINGS["failed"][asked.preset]
        raise ValueError(
            f"{asked.preset} did not work on an {GPU} when it was measured ({why}): ask for another preset"
        )
    if plain and slow > PLAIN_SECONDS:
        raise ValueError(
            f"{asked.preset} may take {minutes(slow)} minutes, and a plain call {minutes(PLAIN_SECONDS)}: submit it as "
            "a job, with POST /clips or the function `submit`"
        )
    if limit_seconds(asked.preset) > DAY_SECONDS:
        raise ValueError(f"{asked.preset} may take {minutes(slow)} minutes, more than Modal's limit of a day holds")
    average = shared.values.get("clip_seconds", expected_seconds(asked.preset))
    queue = queue_of(shared, average)
    state = next_state(POLICY, State(*shared.values.get("mode", (False, 0.0))), queue.wait_seconds, time.time())
    safe = SETTINGS["safe"]
    decision = decide(
        POLICY,
        state,
        queue,
        asked=Option(asked.preset, expected_seconds(asked.preset)),
        safe=Option(safe, expected_seconds(safe)) if safe else None,
        may_degrade=asked.may_degrade,
    )
    shared.values["mode"] = (state.degraded, state.since)
    if decision.preset is None:
        raise RuntimeError(decision.reason)
    seconds = expected_seconds(decision.preset)
    shared.values["clip_seconds"] = smoothed(average, seconds)
    return asked.model_dump(), decision, queue.wait_seconds + seconds


def queue_of(shared: Shared, average: float) -> Queue:
    try:
        stats = shared.generator().generate.get_current_stats()
    except modal.exception.Error as error:  # a clip without a look at the queue is better than none
        print(f"the queue's length is not known: {error}", flush=True)
        return Queue(0, 1, average)
    return Queue(stats.backlog, stats.num_total_runners, average)


def make_clip(request: Any) -> dict[str, Any]:
    """Check, decide, wait for the clip. If its container dies, the next form of snapshot makes it."""
    shared = Shared()
    asked, decision, _ = accept(request, shared, plain=True)
    first = shared.snapshot
    for form in list(FORMS)[list(FORMS).index(first) :]:
        try:
            made = globals()[FORMS[form]]().generate.remote(asked, decision.preset)
        except modal.exception.FunctionTimeoutError as error:
            raise TimeoutError(str(error)) from None
        except modal.exception.Error as error:
            print(f"a container with the snapshot {form!r} died: {error}", flush=True)
            continue
        if form != first:
            shared.values["snapshot"] = form
        return {**made, "preset": decision.preset, "degraded": decision.degraded, "reason": decision.reason}
    raise RuntimeError("containers die, whatever the form of snapshot: see `modal app logs wanstore-endpoint`")


def submit_clip(request: Any) -> dict[str, Any]:
    """Check, decide, start the clip. Its id, and when it may be there."""
    shared = Shared()
    asked, decision, seconds = accept(request, shared, plain=False)
    call = shared.generator().generate.spawn(asked, decision.preset)
    job = {"preset": decision.preset, "degraded": decision.degraded, "reason": decision.reason}
    shared.values[f"job {call.object_id}"] = {**job, "submitted": time.time(), "estimate_seconds": round(seconds)}
    return {"id": call.object_id, **job, "estimate_seconds": round(seconds)}


def find_clip(job_id: str) -> dict[str, Any]:
    """The clip of a job, or how long it has been at it. Raises `LookupError` where there is none, or none any more."""
    job = Shared().values.get(f"job {job_id}") if re.fullmatch(r"fc-\w{1,64}", job_id) else None
    if job is None:
        raise LookupError("there is no such job")
    try:
        made = modal.FunctionCall.from_id(job_id).get(timeout=0)
    except TimeoutError as error:
        if error.args:  # the clip's own: that it is not done yet is told without a word
            raise
        return {"id": job_id, "state": "in progress", **job, "seconds": round(time.time() - job["submitted"])}
    except modal.exception.OutputExpiredError:
        raise LookupError("the clip was kept for a week, and is gone: submit it again") from None
    except modal.exception.Error as error:
        raise RuntimeError(f"its container died: {error}. Submit it again") from None
    return {**job, **made}


CPU: dict[str, Any] = {
    "image": web_image,
    "env": ENVIRONMENT,
    "timeout": int(PLAIN_SECONDS * MARGIN + 300 + POLICY.refuse_seconds + STARTUP_SECONDS),
}


@app.function(**CPU)
@modal.concurrent(max_inputs=100)  # it only waits for the GPU
def make(**request: Any) -> dict[str, Any]:
    """A clip now: `prompt`, and if wanted `preset`, `negative_prompt`, `seed`, `may_degrade`.

    Returns `mp4`, the `preset` used, whether it is `degraded` and the `reason`, and its `seconds`.
    """
    return make_clip(request)


@app.function(**CPU)
@modal.concurrent(max_inputs=100)
def submit(**request: Any) -> dict[str, Any]:
    """A clip later, with the arguments of `make`: its `id`, `preset`, `degraded`, `reason` and `estimate_seconds`."""
    return submit_clip(request)


@app.function(**CPU)
@modal.concurrent(max_inputs=100)
@modal.asgi_app(requires_proxy_auth=True)  # clips cost money: not for everybody
def web() -> Any:
    """`POST /clip`, `POST /clips` and `GET /clips/ID`."""
    from clip_service import service

    return service(make_clip, submit_clip, find_clip)


@app.local_entrypoint()
def main(snapshot: str = "") -> None:
    """Say which form of snapshot is called from now on, or which it is."""
    if snapshot and snapshot not in FORMS:
        sys.exit(f"--snapshot is one of {', '.join(FORMS)}")
    shared = Shared()
    if snapshot:
        shared.values["snapshot"] = snapshot
    print(f"the endpoint's containers start from the snapshot: {shared.snapshot}")
