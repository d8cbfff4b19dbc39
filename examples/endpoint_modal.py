"""A serving app for Wan 2.1 on Modal: text in, an mp4 out, and a way to get through a rush.

    modal deploy examples/endpoint_modal.py                            # after examples/setup_modal.py
    WANSTORE_SNAPSHOT=gpu modal deploy examples/endpoint_modal.py      # the other way to snapshot, see below

From Python, anywhere with a Modal token:

    generator = modal.Cls.from_name("wanstore-endpoint", "Generator")()
    made = generator.generate.remote("a red fox runs through deep snow", preset="480p/3s")
    open("fox.mp4", "wb").write(made["mp4"])

By HTTP, with a proxy token of the workspace (modal.com/settings/proxy-auth-tokens). After 150 s Modal redirects to
where the answer will be, so curl needs -L:

    curl -L -o fox.mp4 -H "Modal-Key: $KEY" -H "Modal-Secret: $SECRET" -H "Content-Type: application/json" \
        -d '{"prompt": "a red fox runs through deep snow"}' https://WORKSPACE--wanstore-endpoint-clip.modal.run

**Cold starts.** A container is snapshotted once its first half is over, and later containers start from there.

- `cpu` (the default): the first half imports everything and builds the modules without weights; the second half
  streams the weights from the Volume to the GPU. The snapshot is small. Nothing in the first half may ask for CUDA.
- `gpu`: the first half also loads the weights onto the GPU, and the snapshot has them. Modal calls this alpha.

**Degraded mode.** When the queue gets long, requests get the safe preset, and the answer says so. A request with
`may_degrade=False` keeps its own. The limits are in `degraded_mode.Policy`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import modal
from modal_common import DEVICE, NAME, VOLUME, image, preset_to_run

with image.imports():  # only where the image is: a machine that deploys needs nothing but modal
    from degraded_mode import Policy, choose, estimated_wait_seconds, is_overloaded, smoothed

    import wanstore
    from wanstore.errors import ChangedError
    from wanstore.generation import generate, write_clip

ADDRESS = f"modal://{VOLUME}/{NAME}"
GPU = "L4"
PRESET = "480p/3s"
"""For who asks for none; also the safe preset, until a benchmark has nominated one."""
SNAPSHOT = os.environ.get("WANSTORE_SNAPSHOT", "cpu")
BENCHMARKS = Path("docs/benchmarks.json")
FIRST_GUESS_SECONDS = 180.0
"""What a clip takes, until this container has made one. A guess: no preset has been timed on an L4 yet."""


def safe_preset() -> str:
    """What the last benchmark says at the time of deployment; the container is told by its environment."""
    if BENCHMARKS.is_file() and (named := json.loads(BENCHMARKS.read_text())["safe_preset"]):
        return str(named)
    return PRESET


SAFE_PRESET = os.environ.get("WANSTORE_SAFE_PRESET") or safe_preset()

WEB_PACKAGES = ("fastapi[standard]==0.165.0", "attrs==26.1.0")
"""All that the HTTP function's image has besides wanstore's own modules, which there may import no more than these."""

app = modal.App("wanstore-endpoint")


@app.cls(
    image=image,
    gpu=GPU if DEVICE == "cuda" else None,
    memory=16 * 1024,
    # Nothing is written: a container that cannot write cannot break what the others load.
    volumes={f"/{VOLUME}": modal.Volume.from_name(VOLUME).with_mount_options(read_only=True)},
    env={"WANSTORE_DEVICE": DEVICE, "WANSTORE_SNAPSHOT": SNAPSHOT, "WANSTORE_SAFE_PRESET": SAFE_PRESET},
    enable_memory_snapshot=True,
    experimental_options={"enable_gpu_snapshot": SNAPSHOT == "gpu"},
    timeout=1800,  # one clip, at the slowest
    startup_timeout=900,  # until a container is ready
    scaledown_window=300,  # an idle GPU is paid for this long
    max_containers=4,  # a rush costs no more than this; what is beyond it, waits
)
class Generator:
    """Makes one clip at a time: a second one would not make the GPU any faster."""

    @modal.enter(snap=True)
    def prepare(self) -> None:
        """What every container would do the same way: it is in the snapshot."""
        if SNAPSHOT == "gpu":
            self.pipe = wanstore.load(ADDRESS, device=DEVICE)
        else:
            self.pipe = wanstore.load(ADDRESS, device="cpu", weights="deferred")

    @modal.enter(snap=False)
    def finish(self) -> None:
        """What each container needs anew: random seeds, weights on its GPU, the attention backend."""
        try:
            wanstore.activate(self.pipe, DEVICE)
        except ChangedError as error:  # slower than from the snapshot, and better than no answer
            print(f"{error} Loading what is there now.", flush=True)
            self.pipe = wanstore.load(ADDRESS, device=DEVICE)
        print(self.pipe.load_report, flush=True)
        self.policy = Policy()
        self.overloaded = False
        self.clip_seconds = FIRST_GUESS_SECONDS

    @modal.method()
    def generate(
        self,
        prompt: str,
        preset: str = PRESET,
        *,
        negative_prompt: str = "",
        seed: int = 0,
        may_degrade: bool = True,
    ) -> dict[str, Any]:
        """A clip as `mp4`, with the `preset` used, whether it is `degraded` and the `reason`, and its `seconds`."""
        preset_to_run(preset)  # a wrong name is told whatever the queue
        wait_seconds = self._wait_seconds()
        self.overloaded = is_overloaded(self.policy, wait_seconds, self.overloaded)
        choice = choose(preset, SAFE_PRESET, self.overloaded, may_degrade, wait_seconds)
        began = time.monotonic()
        frames = generate(self.pipe, prompt, preset_to_run(choice.preset), negative_prompt=negative_prompt, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            write_clip(frames, Path(folder, "clip.mp4"))
            mp4 = Path(folder, "clip.mp4").read_bytes()
        seconds = time.monotonic() - began
        self.clip_seconds = smoothed(self.clip_seconds, seconds)
        return {
            "mp4": mp4,
            "preset": choice.preset,
            "degraded": choice.degraded,
            "reason": choice.reason,
            "seconds": seconds,
        }

    def _wait_seconds(self) -> float:
        try:
            stats = Generator().generate.get_current_stats()
        except modal.exception.Error as error:  # a clip without a look at the queue is better than none
            print(f"the queue's length is not known: {error}", flush=True)
            return 0.0
        return estimated_wait_seconds(stats.backlog, stats.num_total_runners, self.clip_seconds)


@app.function(
    image=modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(*WEB_PACKAGES)
    .add_local_python_source("wanstore", ignore=["**/__pycache__"])
    .add_local_python_source("modal_common"),
    timeout=1800,
)
@modal.concurrent(max_inputs=100)  # it only waits for the GPU
@modal.fastapi_endpoint(method="POST", requires_proxy_auth=True)  # clips cost money: not for everybody
def clip(request: dict[str, Any]) -> Any:
    """The arguments of `Generator.generate` as JSON; the answer is the mp4, and the rest is in its headers."""
    from fastapi import HTTPException, Response

    from wanstore.errors import NotFoundError

    known = {"prompt", "preset", "negative_prompt", "seed", "may_degrade"}
    if "prompt" not in request or not request.keys() <= known:
        raise HTTPException(400, f"send a prompt, and of the others only {sorted(known - {'prompt'})}")
    try:
        preset_to_run(request.setdefault("preset", PRESET))
    except NotFoundError as error:
        raise HTTPException(400, str(error)) from error
    made = Generator().generate.remote(**request)
    told = {f"X-Wanstore-{key.capitalize()}": str(made[key]) for key in ("preset", "degraded", "reason", "seconds")}
    return Response(made["mp4"], media_type="video/mp4", headers=told)
