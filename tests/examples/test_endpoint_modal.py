"""examples/endpoint_modal.py: deployed by the unmodified command line, called from a machine that has only modal."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import av
import modal
import pytest

from tests.examples.account import ROOT, Account, wait_for
from tests.modal_loopback.container import Checkpoint
from wanstore.errors import ChangedError
from wanstore.presets import PRESETS
from wanstore.stores._atomic_swap import swap
from wanstore.testing.manifests import seal_as_is
from wanstore.testing.tiny_wan import make_tiny_wan


@pytest.fixture(scope="module")
def volume(account: Account, tiny_fp16: Path) -> Path:
    """The Volume as setup leaves it, with a tiny pipeline; of each function one container may run."""
    folder = account.control.volumes.create("anime-models").folder
    shutil.copytree(tiny_fp16, folder / "wan2.1-fp16")
    seal_as_is(folder / "wan2.1-fp16")
    account.control.containers.most = 1
    return folder


@contextmanager
def deployed(account: Account, snapshot: str, **variables: str) -> Iterator[Any]:
    """The endpoint under a name of its own, as a function that gives its functions."""
    app = f"endpoint-{snapshot}"
    result = account.modal(
        "deploy", "examples/endpoint_modal.py", "--name", app,
        WANSTORE_DEVICE="cpu", WANSTORE_SNAPSHOT=snapshot, **variables,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    with account.client() as client:
        modal.Dict.from_name("wanstore-endpoint", create_if_missing=True, client=client).pop("snapshot", None)
        yield lambda function: modal.Function.from_name(app, function, client=client)


def frames_of(mp4: bytes) -> list[bytes]:
    """Each frame's pixels: PyAV decodes all of them."""
    with av.open(io.BytesIO(mp4), "r") as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]


CALLER = """
import base64, json, time
import modal

make = modal.Function.from_name("endpoint-cpu", "make")
submit = modal.Function.from_name("endpoint-cpu", "submit")

def told(function, **request):
    try:
        return function.remote(**request)
    except (ValueError, RuntimeError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"

found = {
    "wrong": told(make, prompt=["a fox"] * 20, preset="8k/1h"),
    "long": told(make, prompt="a fox", preset="720p/10s"),
    "jobs": [told(submit, prompt="a fox", preset="480p/5s", may_degrade=may) for may in (True, True, False, True)],
}
clips = [modal.FunctionCall.from_id(job["id"]).get() for job in found["jobs"] if isinstance(job, dict)]
clips.append(told(make, prompt="a fox"))
found["clips"] = [base64.b64encode(clip["mp4"]).decode() for clip in clips]
found["last"] = {key: clips[-1][key] for key in ("preset", "degraded", "reason")}
print(json.dumps(found))
"""


def test_a_caller_with_only_modal_is_refused_queued_degraded_and_answered(account: Account, volume: Path) -> None:
    """Four jobs at once to an app without a container: nothing is wrong with them, and the queue gets long.

    Its snapshot was taken with no file of the Volume open or mapped.
    """
    from base64 import b64decode

    with deployed(account, "cpu", WANSTORE_SAFE_PRESET="480p/3s"):
        before = len(account.control.containers.started)
        caller = account.python(CALLER)
    assert caller.returncode == 0, caller.stderr
    found = json.loads(caller.stdout.splitlines()[-1])
    assert found["wrong"].startswith("ValueError: prompt: ") and "preset: " in found["wrong"]
    assert found["long"].startswith("ValueError: 720p/10s may take ") and "submit it as a job" in found["long"]
    first, second, third, fourth = found["jobs"]
    assert (first["preset"], first["degraded"], first["reason"]) == ("480p/5s", False, "")
    assert (second["preset"], second["degraded"]) == ("480p/3s", True) and " s long" in second["reason"]
    assert (third["preset"], third["degraded"]) == ("480p/5s", False) and "refuses" in third["reason"]
    assert isinstance(fourth, dict) or "try again later" in fourth
    assert first["estimate_seconds"] < second["estimate_seconds"] < third["estimate_seconds"]
    assert all(len(frames_of(b64decode(mp4))) == 5 for mp4 in found["clips"])
    assert found["last"] == {"preset": "480p/3s", "degraded": False, "reason": ""}
    assert account.control.containers.checkpoints[-1] == Checkpoint("CpuSnapshot.*", ())
    assert {one.name for one in account.control.containers.started[before:]} == {"make", "submit", "CpuSnapshot.*"}


def test_blocks_that_were_compiled_before_are_used(account: Account, volume: Path, compiled_store: Path) -> None:
    """In each form with a snapshot; the log says so when a container is ready."""
    (functions,) = compiled_store.glob("w.compiled-*")
    kept = volume / functions.name.replace("w", "wan2.1-fp16", 1)
    shutil.copytree(functions, kept)
    try:
        for form in ("gpu", "cpu"):
            with deployed(account, form) as function:
                assert len(frames_of(function("make").remote(prompt="a fox")["mp4"])) == 5
            assert "blocks compiled for 1x8 tokens" in logs(account)
            assert account.control.containers.checkpoints[-1].files_in_use == (), (
                "no file of the Volume is open or mapped"
            )
    finally:
        shutil.rmtree(kept)


def test_a_pipeline_that_is_replaced_is_served_by_a_container_that_runs(
    account: Account, volume: Path, tmp_path: Path
) -> None:
    """In the form for GPU snapshots, with the CPU in the GPU's place: the next clip is the new model's, and so on."""
    with deployed(account, "gpu") as function:
        before = frames_of(function("make").remote(prompt="a fox")["mp4"])
        assert account.control.containers.checkpoints[-1] == Checkpoint("GpuSnapshot.*", ())
        new = make_tiny_wan(volume / "new", dtype="float16", seed=1)
        seal_as_is(new, name="wan2.1-fp16")
        with account.control.volumes.named("anime-models").lock:  # type: ignore[union-attr]
            swap(new, volume / "wan2.1-fp16")
        after = [frames_of(function("make").remote(prompt="a fox")["mp4"]) for _ in range(2)]
    assert len(before) == 5 and after[0] == after[1] != before
    assert "was replaced: loading what is there now" in logs(account)


def test_a_container_that_dies_is_followed_by_the_next_form_of_snapshot(account: Account, volume: Path) -> None:
    """As when restores crash. That form is called from then on, until somebody says otherwise."""
    with deployed(account, "gpu") as function:
        call = function("make").spawn(prompt="a fox")
        account.running("GpuSnapshot.*").kill()
        assert len(frames_of(call.get()["mp4"])) == 5
        assert account.control.containers.started[-1].name == "CpuSnapshot.*"
        said = account.modal("run", "examples/endpoint_modal.py", WANSTORE_DEVICE="cpu")
        assert "start from the snapshot: cpu" in said.stdout, said.stdout
        said = account.modal("run", "examples/endpoint_modal.py", "--snapshot", "none", WANSTORE_DEVICE="cpu")
        assert "start from the snapshot: none" in said.stdout, said.stdout
        assert len(frames_of(function("make").remote(prompt="a fox")["mp4"])) == 5
        assert account.control.containers.started[-1].name == "NoSnapshot.*"


TOKEN = {"Modal-Key": "wk-made-up", "Modal-Secret": "ws-made-up"}


@pytest.fixture(scope="class")
def ask(account: Account, volume: Path) -> Iterator[Any]:
    """Sends the endpoint a request, JSON unless it is bytes, and gives its status, headers and body."""
    with deployed(account, "none") as function:
        url = function("web").get_web_url()

        def ask(path: str, body: Any = None, headers: dict[str, str] = TOKEN) -> Any:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            try:
                with urlopen(Request(f"{url}{path}", data, headers), timeout=100) as response:
                    return response.status, response.headers, response.read()
            except HTTPError as error:
                return error.code, error.headers, error.read()

        yield ask


class TestHttp:
    """The endpoint's own address, by plain HTTP, through all that Modal puts before the app."""

    def test_a_clip_comes_back_at_once(self, ask: Any) -> None:
        """With what it was made by in its headers."""
        status, headers, mp4 = ask("/clip", {"prompt": "a fox"})
        assert (status, headers["Content-Type"]) == (200, "video/mp4"), mp4
        assert (headers["X-Wanstore-Preset"], headers["X-Wanstore-Degraded"]) == ("480p/3s", "False")
        assert len(frames_of(mp4)) == 5

    def test_a_job_is_asked_for_until_it_is_done_and_then_it_is_kept_for_a_week(
        self, ask: Any, account: Account
    ) -> None:
        """Accepted, in progress, a clip, gone."""
        status, headers, body = ask("/clips", {"prompt": "a fox", "preset": "480p/5s"})
        job = json.loads(body)
        assert (status, headers["Location"]) == (202, f"/clips/{job['id']}")
        status, headers, body = ask(headers["Location"])
        assert (status, json.loads(body)["state"], "Retry-After" in headers) == (202, "in progress", True)
        status, headers, mp4 = wait_for(lambda: None if (found := ask(f"/clips/{job['id']}"))[0] == 202 else found)
        assert (status, headers["X-Wanstore-Preset"]) == (200, "480p/5s") and len(frames_of(mp4)) == 5
        account.control.faults.expire(job["id"])
        status, _, body = ask(f"/clips/{job['id']}")
        assert status == 404 and b"kept for a week" in body

    def test_a_job_whose_container_dies_says_so(self, ask: Any, account: Account) -> None:
        """It is not looked for for ever."""
        account.control.faults.stall("FunctionPutOutputs")  # or the clip may be done before its container is killed
        job = json.loads(ask("/clips", {"prompt": "a fox"})[2])
        account.running("NoSnapshot.*").kill()
        account.control.faults.clear()
        status, _, body = wait_for(lambda: None if (found := ask(f"/clips/{job['id']}"))[0] == 202 else found)
        assert status == 500 and b"its container died" in body

    @pytest.mark.parametrize(
        ("path", "body", "status", "told"),
        [
            ("/clip", {"prompt": ["a fox"] * 20}, 422, b"prompt: "),
            ("/clips", {"prompt": "a fox", "preset": "8k/1h"}, 422, b"preset: "),
            ("/clip", {"prompt": "a fox", "preset": "720p/10s"}, 422, b"submit it as a job"),
            ("/clip", b"a fox", 400, b"not JSON"),
            ("/clip", {"prompt": "a fox" * 100_000}, 413, b"at most 65536 bytes"),
            ("/clips/fc-nobody", None, 404, b"no such job"),
            ("/clips/..%2F", None, 404, b""),
        ],
    )
    def test_a_wrong_request_is_refused_with_the_reason_and_wakes_no_gpu(
        self, ask: Any, account: Account, path: str, body: Any, status: int, told: bytes
    ) -> None:
        """By the container that has no GPU."""
        before = len(account.control.containers.started)
        answer = ask(path, body)
        assert answer[0] == status and told in answer[2], answer[2]
        assert {one.name for one in account.control.containers.started[before:]} <= {"web"}

    def test_without_a_proxy_token_nothing_is_made(self, ask: Any) -> None:
        """Clips cost money."""
        assert ask("/clip", {"prompt": "a fox"}, {})[0] == 401


def logs(account: Account) -> str:
    return "".join(app.log.text for app in account.control.apps.apps.values())


class TestGenerator:
    """What one container does, in this process."""

    @pytest.fixture
    def endpoint(self, tiny_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.syspath_prepend(ROOT / "examples")
        monkeypatch.setenv("WANSTORE_MODAL_MOUNTS", f"anime-models={tmp_path}")
        endpoint = import_module("endpoint_modal")
        monkeypatch.setattr(endpoint, "DEVICE", "cpu")
        monkeypatch.setattr(import_module("modal_common"), "DEVICE", "cpu")
        monkeypatch.setattr(modal.Volume, "from_name", lambda name: SimpleNamespace(reload=lambda: None))
        shutil.copytree(tiny_fp16, tmp_path / "wan2.1-fp16")
        seal_as_is(tmp_path / "wan2.1-fp16")
        return endpoint

    def test_a_skeleton_of_another_pipeline_is_not_filled(self, endpoint: Any, tmp_path: Path) -> None:
        """Replaced between snapshot and restore: the container starts all the same, with the new one."""
        generator = endpoint.Generator()
        generator.load(deferred=True)
        skeleton = generator.pipe
        shutil.rmtree(tmp_path / "wan2.1-fp16")
        seal_as_is(make_tiny_wan(tmp_path / "wan2.1-fp16", dtype="float16", seed=1))
        generator.get_ready()
        assert generator.pipe is not skeleton
        assert not any(parameter.is_meta for parameter in generator.pipe.transformer.parameters())

    def test_what_is_replaced_in_the_middle_of_a_clip_is_made_again(
        self, endpoint: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An offloaded component finds another manifest when it is read back: once is enough."""
        generator = endpoint.Generator()
        generator.load()
        first, clip = generator.pipe, generator.clip
        fails = [ChangedError("replaced")]
        monkeypatch.setattr(generator, "clip", lambda *asked: _raise(fails.pop()) if fails else clip(*asked))
        made = generate_of(endpoint)(generator, {"prompt": "a fox"}, "480p/3s")
        assert len(frames_of(made["mp4"])) == 5 and generator.pipe is not first

    def test_a_clip_that_is_not_done_in_time_is_given_up(self, endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A `TimeoutError` that says so: the GPU is not held until Modal's own limit."""
        generator = endpoint.Generator()
        generator.load()
        monkeypatch.setattr(endpoint, "limit_seconds", lambda preset: 0.0)
        with pytest.raises(TimeoutError, match="480p/3s was not done in"):
            generate_of(endpoint)(generator, {"prompt": "a fox"}, "480p/3s")

    def test_a_new_pipeline_that_cannot_be_loaded_is_tried_again_by_the_next_call(
        self, endpoint: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A GPU that is short of memory, for one: the old pipeline is gone, and nobody takes it for the new one."""
        generator = endpoint.Generator()
        generator.load()
        load, fails = generator.load, [MemoryError("not now")]
        monkeypatch.setattr(generator, "load", lambda: _raise(fails.pop()) if fails else load())
        generator.digest = "of another"
        with pytest.raises(MemoryError):
            generate_of(endpoint)(generator, {"prompt": "a fox"}, "480p/3s")
        assert len(frames_of(generate_of(endpoint)(generator, {"prompt": "a fox"}, "480p/3s")["mp4"])) == 5

    @pytest.mark.parametrize(
        ("error", "told"), [(ChangedError("replaced"), RuntimeError), (ValueError("wrong"), ValueError)]
    )
    def test_errors_are_built_in_ones(
        self, endpoint: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
    ) -> None:
        """A caller could not import wanstore's."""
        generator = SimpleNamespace(stored=lambda: "", digest="", clip=lambda *_: _raise(error), load_anew=lambda: None)
        with pytest.raises(told) as caught:
            generate_of(endpoint)(generator, {"prompt": "a fox"}, "480p/3s")
        assert type(caught.value) is told and str(error) in str(caught.value)


def generate_of(endpoint: Any) -> Any:
    return vars(endpoint.Generator)["generate"]._get_raw_f()


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "told"), [(TimeoutError(), None), (TimeoutError("720p/5s was not done in 90 minutes"), TimeoutError)]
)
def test_a_job_that_was_given_up_is_not_in_progress(
    monkeypatch: pytest.MonkeyPatch, error: TimeoutError, told: type[Exception] | None
) -> None:
    """The client's own answer, while there is none, is a `TimeoutError` too."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    endpoint = import_module("endpoint_modal")
    values = {"job fc-1": {"preset": "720p/5s", "submitted": 0.0}}
    monkeypatch.setattr(endpoint, "Shared", lambda: SimpleNamespace(values=values))
    call = SimpleNamespace(get=lambda timeout: _raise(error))
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda job_id: call)
    if told:
        with pytest.raises(told, match="was not done"):
            endpoint.find_clip("fc-1")
    else:
        assert endpoint.find_clip("fc-1")["state"] == "in progress"


class TestSettings:
    """What is decided when the app is deployed."""

    @pytest.fixture
    def settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.syspath_prepend(ROOT / "examples")
        endpoint = import_module("endpoint_modal")
        monkeypatch.setattr(endpoint, "BENCHMARKS", tmp_path / "benchmarks.json")

        def settings(**document: Any) -> Any:
            rows = [
                {"preset": {"name": name}, "status": "ok", "clip_seconds": 100.0 * number, "attention": "native"}
                for number, name in enumerate(PRESETS, 1)
            ]
            usual = {"gpu": "L4", "full_size": True, "trained": True, "complete": True, "safe_preset": "480p/3s"}
            (tmp_path / "benchmarks.json").write_text(json.dumps({**usual, "rows": rows, **document}))
            return endpoint.settings()

        return settings

    def test_a_complete_report_of_this_gpu_is_believed(self, settings: Any) -> None:
        """Seconds, safe preset, attention."""
        found = settings()
        assert found["seconds"]["720p/10s"] == (400.0, 400.0)
        assert (found["safe"], found["attention"], found["snapshot"]) == ("480p/3s", "native", "gpu")

    def test_a_preset_that_did_not_work_is_refused(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before a GPU wakes to find out again."""
        endpoint = import_module("endpoint_modal")
        rows = [
            {"preset": {"name": name}, "status": status, "clip_seconds": seconds, "attention": "native"}
            for name, status, seconds in (("480p/3s", "ok", 100.0), ("720p/10s", "out of memory", None))
        ]
        monkeypatch.setattr(endpoint, "SETTINGS", settings(rows=rows))
        with pytest.raises(ValueError, match=r"720p/10s did not work on an L4 .* \(out of memory\)"):
            endpoint.accept({"prompt": "a fox", "preset": "720p/10s"}, SimpleNamespace(values={}), plain=False)

    @pytest.mark.parametrize(
        ("document", "why"),
        [
            ({"gpu": "H100"}, "no report of an L4"), ({"gpu": None}, "no report"), ({"trained": False}, "not trained"),
            ({"full_size": None, "complete": False}, "not full size and complete"),
        ],
    )  # fmt: skip
    def test_any_other_is_not_and_it_is_said_why(self, settings: Any, document: Any, why: str, capsys: Any) -> None:
        """Then clips are estimated, and none is degraded."""
        found = settings(**document)
        assert found["seconds"]["720p/10s"][1] > 3600 and (found["safe"], found["attention"]) == ("", "")
        assert why in capsys.readouterr().out

    def test_whoever_deploys_has_the_last_word(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the environment."""
        for name, value in {"SAFE_PRESET": "480p/5s", "ATTENTION": "xformers", "SNAPSHOT": "none"}.items():
            monkeypatch.setenv(f"WANSTORE_{name}", value)
        found = settings()
        assert (found["safe"], found["attention"], found["snapshot"]) == ("480p/5s", "xformers", "none")


IN_THE_WEB_IMAGE = """
import sys
from importlib import import_module
from types import SimpleNamespace

import modal

for package in sys.argv[1:]:
    import_module(package)
present = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
present |= {"wanstore", "modal_common", "endpoint_modal", "clip_request", "clip_service"}

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in present:
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

sys.meta_path.insert(0, Absent)
import endpoint_modal

stats = SimpleNamespace(backlog=0, num_total_runners=1)
generate = SimpleNamespace(
    remote=lambda asked, preset: {"mp4": b"mp4", "seconds": 2.5}, get_current_stats=lambda: stats
)
shared = SimpleNamespace(values={}, snapshot="gpu", generator=lambda: SimpleNamespace(generate=generate))
endpoint_modal.Shared = lambda: shared
endpoint_modal.GpuSnapshot = shared.generator
assert endpoint_modal.web._raw_f_()
print(endpoint_modal.make_clip({"prompt": "a fox"})["mp4"].decode())
"""


def test_the_cpu_functions_need_no_more_than_their_image_has(account: Account) -> None:
    """Not what wanstore needs elsewhere: cattrs, torch, diffusers, click and others."""
    packages = "fastapi", "attrs"
    listed = re.findall(r'"([a-z]+)==', (ROOT / "examples/endpoint_modal.py").read_text())
    assert set(packages) <= set(listed)
    run = subprocess.run(
        [sys.executable, "-c", IN_THE_WEB_IMAGE, *packages],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")])},
    )
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "mp4", run.stderr
