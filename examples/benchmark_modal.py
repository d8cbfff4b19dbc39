"""What each preset costs on the GPU of production: a container for each preset, and a page at the end.

    modal run --detach examples/benchmark_modal.py        # all four; it goes on without this machine
    modal run examples/benchmark_modal.py --fetch         # bring the page home, as far as it has got
    modal run examples/benchmark_modal.py --quick         # minutes, not hours: 4 steps, the rest extrapolated
    modal run examples/benchmark_modal.py --resume        # measure what is missing, after whatever went wrong
    modal run examples/benchmark_modal.py --eager         # without compiled blocks
    modal run examples/benchmark_modal.py --gpu H100 --presets 480p/3s,480p/5s
    modal run examples/benchmark_modal.py --cold-start    # how fast a deployed class is ready, by snapshot

Run it from the root of a checkout, after examples/setup_modal.py; this machine needs nothing but `modal`. The plan
comes first: minutes, dollars and time limit of each preset, worked out from its arithmetic. What cannot be done in
time is refused then, before a GPU starts.

A container without a GPU conducts the rest. First one with a GPU compiles the transformer's blocks for the presets, and
keeps them on the Volume, where the endpoint finds them. What cannot be compiled runs eagerly. Then a container for each
preset starts, side by side, so that none inherits another's memory or warm caches. Each saves its row on the Volume as
soon as it has it. A preset that fails, times out or whose container dies is a row too, and the page is written anew
after each row: everything lies below `/benchmarks/GPU/` on the Volume, page, JSON, charts, contact sheets and clips.
Without --detach the run ends with this program, but what was measured stays: --resume goes on from there.

An L4's page is docs/benchmarks.md, whose JSON examples/endpoint_modal.py reads its safe preset and time limits from.
Another GPU's page has its name, as docs/benchmarks-h100.md, and that of a try-out on a CPU is build/benchmarks-cpu.md.
Options: --presets A,B, --steps N, --rounds N, --timeout SECONDS for each preset, --gpu, --out FOLDER, --name and
--volume of the pipeline.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import cold_start_modal
import modal
from modal_common import DEVICE, NAME, VOLUME, image, preset_to_run

from wanstore.benchmarking import plan as planning
from wanstore.benchmarking.cost import PRICES

GPU = "L4"
CONTAINER = {"cores": 2, "memory_gib": 16}
ATTENTION = "auto"
"""Compares the backends that work and takes the fastest. Seconds, beside minutes for a clip."""
COMPILE_SECONDS = 3600
"""When compiling is given up. An H200 took a minute and a half for two presets."""


def container_seconds(one: planning.Plan) -> int:
    """When Modal stops a container: it has some time beside its preset's to start, and to save what there is."""
    return min(one.timeout_seconds + one.timeout_seconds // 10 + 15, planning.DAY_SECONDS)


POLL_SECONDS = 5
COLD_STARTS = "cold-starts.json"

ON_GPU: dict[str, Any] = {
    "gpu": GPU if DEVICE == "cuda" else None,
    "cpu": CONTAINER["cores"],
    "memory": CONTAINER["memory_gib"] * 1024,
    "env": {"WANSTORE_DEVICE": DEVICE},
    "single_use_containers": True,
}

app = modal.App("wanstore-benchmark", image=image.add_local_python_source("cold_start_modal"))


class Results:
    """A benchmark's files on the Volume, through the client's own calls.

    So nobody needs the Volume mounted to write to, where it could break what others load, and nothing waits for a
    commit.
    """

    def __init__(self, volume: str, gpu: str) -> None:
        self.stem = "benchmarks" if gpu == GPU else f"benchmarks-{(gpu or 'cpu').lower()}"
        self._volume = modal.Volume.from_name(volume)
        self._folder = f"benchmarks/{gpu or 'cpu'}"

    def write(self, files: dict[str, bytes]) -> None:
        """Each file whole, in place of an earlier one."""
        with self._volume.batch_upload(force=True) as batch:
            for name, content in files.items():
                batch.put_file(io.BytesIO(content), f"/{self._folder}/{name}")

    def read(self, name: str) -> bytes | None:
        try:
            return b"".join(self._volume.read_file(f"{self._folder}/{name}"))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        content = self.read(name)
        return None if content is None else json.loads(content)

    def names(self, below: str) -> list[str]:
        try:
            entries = self._volume.listdir(f"{self._folder}/{below}".rstrip("/"), recursive=True)
        except (FileNotFoundError, modal.exception.NotFoundError):
            return []
        files = [entry.path for entry in entries if entry.type == modal.volume.FileEntryType.FILE]
        return [path.lstrip("/").removeprefix(f"{self._folder}/") for path in files]

    def remove(self, name: str) -> None:
        self._volume.remove_file(f"{self._folder}/{name}")

    def clear(self) -> None:
        """All but the cold starts, which are measured apart."""
        for name in self.names(""):
            if name != COLD_STARTS:
                self.remove(name)


def row_file(preset: str) -> str:
    return f"rows/{preset.replace('/', '-')}.json"


class TimeLeft:
    """A progress for logs: a line for each tenth of a preset's steps, with the time left."""

    def __init__(self, preset: str) -> None:
        self._preset, self._task, self._total, self._done, self._began = preset, "", 1, 0, time.monotonic()

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        if unit == "%":  # the task of the whole run
            self._task, self._total, self._done, self._began = task, max(total, 1), 0, time.monotonic()

    def advance(self, task: str, amount: int) -> None:
        if task != self._task:
            return
        before = self._done
        self._done += amount
        if before * 10 // self._total < self._done * 10 // self._total:
            left = (time.monotonic() - self._began) * (self._total - self._done) / self._done
            share = f"{self._done / self._total:.0%}"
            print(f"{self._preset}: {share}, about {planning.minutes(left)} minutes left", flush=True)

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None:
        print(text, flush=True)


@app.function(**ON_GPU)
def compile_blocks(volume: str, name: str, presets: list[Any]) -> str:
    """Compile blocks for the presets and keep them on the Volume; the attention backend that they were made for."""
    import wanstore

    report = wanstore.compile_blocks(
        f"modal://{volume}/{name}", presets=presets, device=DEVICE, attention=ATTENTION, progress=TimeLeft("compiling")
    )
    print("\n".join(map(str, report.presets)), flush=True)
    return report.made_for["attention"]


@app.function(**ON_GPU)
def measure(
    volume: str, name: str, gpu: str, one: planning.Plan, recipe: dict[str, Any], compiled_for: str | None
) -> None:
    """Measure one preset and save its row, whatever came of it, with its pictures.

    `compiled_for` is the attention backend that there are compiled blocks for; None to run eagerly.
    """
    from wanstore import bench

    began = time.monotonic()
    results = Results(volume, gpu)
    with tempfile.TemporaryDirectory() as work:
        page = Path(work, f"{results.stem}.md")
        report = bench(
            f"modal://{volume}/{name}",
            presets=[one.preset],
            rounds=one.rounds,
            steps=one.steps,
            device=DEVICE,
            attention=compiled_for or ATTENTION,
            compile="cached" if compiled_for else "off",
            timeout_seconds=one.timeout_seconds,
            report=page,
            progress=TimeLeft(one.preset.name),
        )
        pictures = {f"page/{file.relative_to(work)}": file.read_bytes() for file in Path(work).rglob("assets/*/*")}
    row = {"recipe": recipe, "seconds": time.monotonic() - began, "report": json.loads(report.to_json())}
    results.write({**pictures, row_file(one.preset.name): json.dumps(row).encode()})


@app.function(timeout=planning.DAY_SECONDS, env={"WANSTORE_DEVICE": DEVICE}, single_use_containers=True)
def conduct(
    run: str, command: str, volume: str, name: str, gpu: str, plans: list[planning.Plan], resume: bool, eager: bool
) -> dict[str, str]:
    """Start what is missing, wait for it, and write the page after each row. The summary, or what is in the way.

    Modal may end this container and give its work to another: that one finds the rows and the calls of the same `run`.
    """
    import wanstore
    from wanstore.errors import WanstoreError

    results = Results(volume, gpu)
    try:
        weights = wanstore.open_store(f"modal://{volume}").manifest(name).digest
    except WanstoreError as error:
        return {"error": str(error)}
    before = results.read_json("run.json") or {}
    if not resume and before.get("run") != run:
        results.clear()
        before = {}
    recipes = {one.preset.name: recipe_of(one, weights, eager) for one in plans}
    drop_other_recipes(results, recipes)
    began = time.monotonic()
    calls: dict[str, Any] = {}
    ids: dict[str, Any] = {}
    measured = [one.preset.name for one in plans if has_final_row(results, one.preset.name)]
    for preset in measured:
        print(f"{preset} was measured before by this recipe: not measured again", flush=True)
    missing = [one for one in plans if one.preset.name not in measured]
    compiled_for = compile_for(volume, name, gpu, missing) if missing and not eager else None
    for one in missing:
        preset = one.preset.name
        earlier = before.get("calls", {}).get(preset, {})
        calls[preset] = (
            running_call(earlier.get("id")) if earlier.get("recipe") == recipes[preset] else None
        ) or start(volume, name, gpu, one, recipes[preset], compiled_for)
        ids[preset] = {"id": calls[preset].object_id, "recipe": recipes[preset]}
        # At once: whoever takes this over must not start another GPU for it.
        results.write({"run.json": json.dumps({"run": run, "command": command, "calls": ids}).encode()})

    while True:
        summary = write_page(results, gpu, waited_for=list(calls))
        if not calls:
            return {"summary": summary}
        done = wait_for_one(calls)
        for preset, failure in done.items():
            del calls[preset]
            if failure:
                row = {"recipe": recipes[preset], "seconds": time.monotonic() - began, **failure}
                results.write({row_file(preset): json.dumps(row).encode()})
                print(f"{preset}: {failure['status']}, {failure['reason']}", flush=True)
        print(f"{len(plans) - len(calls)} of {len(plans)} presets have a row", flush=True)


def options_of(volume: str, mounted: Any, gpu: str, timeout: int) -> dict[str, Any]:
    """What a container with the Volume has besides `ON_GPU`."""
    return {"volumes": {f"/{volume}": mounted}, "timeout": timeout, **({"gpu": gpu} if gpu else {})}


def compile_for(volume: str, name: str, gpu: str, plans: list[planning.Plan]) -> str | None:
    """The attention backend that the blocks of these presets are compiled for; None where they could not be."""
    options = options_of(volume, modal.Volume.from_name(volume), gpu, COMPILE_SECONDS)
    try:
        return str(compile_blocks.with_options(**options).remote(volume, name, [one.preset for one in plans]))
    except Exception as error:  # noqa: BLE001 - whatever it was, clips can be made without
        print(f"blocks are not compiled: {error or type(error).__name__}", flush=True)
        return None


def recipe_of(one: planning.Plan, weights: str, eager: bool) -> dict[str, Any]:
    """What a row's figures depend on: rows of the same recipe may stand for one another."""
    import attrs

    import wanstore

    preset = {**attrs.asdict(one.preset), "notes": ""}
    how = {"rounds": one.rounds, "steps": one.steps, "attention": ATTENTION, "eager": eager, "weights": weights}
    return {"preset": preset, **how, "wanstore": wanstore.__version__}


def drop_other_recipes(results: Results, recipes: dict[str, Any]) -> None:
    """Rows that were made otherwise than is asked for now. Those of presets that are not asked for stay."""
    for preset, recipe in recipes.items():
        row = results.read_json(row_file(preset))
        if row and row["recipe"] != recipe:
            results.remove(row_file(preset))


def has_final_row(results: Results, preset: str) -> bool:
    """Whether another try would find the same: a timeout or a crash may have been the machine's fault."""
    from wanstore.benchmarking.rows import FINAL

    row = results.read_json(row_file(preset))
    return bool(row) and "report" in row and row["report"]["rows"][0]["status"] in FINAL


def running_call(call_id: str | None) -> Any:
    """An earlier run's call that is still at it."""
    if call_id is None:
        return None
    call = modal.FunctionCall.from_id(call_id)
    try:
        call.get(timeout=0)
    except TimeoutError as error:
        return None if error.args else call
    except Exception as error:  # noqa: BLE001 - whatever ended it, it has no row
        print(f"an earlier measurement ended ({type(error).__name__}), and starts again", flush=True)
    return None


def start(
    volume: str, name: str, gpu: str, one: planning.Plan, recipe: dict[str, Any], compiled_for: str | None
) -> Any:
    """A container for one preset, which Modal stops if it does not stop itself."""
    mounted = modal.Volume.from_name(volume).with_mount_options(read_only=True)
    options = options_of(volume, mounted, gpu, container_seconds(one))
    return measure.with_options(**options).spawn(volume, name, gpu, one, recipe, compiled_for)


def wait_for_one(calls: dict[str, Any]) -> dict[str, dict[str, str] | None]:
    """The presets that are done, at least one of them; None for those whose container has saved a row."""
    while True:
        done: dict[str, dict[str, str] | None] = {}
        for preset, call in calls.items():
            try:
                call.get(timeout=POLL_SECONDS / len(calls))
            except TimeoutError as error:
                if error.args:  # the measurement's own: that it is not done yet is told without a word
                    done[preset] = {"status": "crash", "reason": f"its container failed: {error}"}
            except modal.exception.FunctionTimeoutError as error:
                done[preset] = {"status": "timeout", "reason": f"Modal stopped its container: {error}"}
            except Exception as error:  # noqa: BLE001 - whatever it was, it is this preset's alone
                done[preset] = {"status": "crash", "reason": f"its container failed: {error or type(error).__name__}"}
            else:
                done[preset] = None
        if done:
            return done


def write_page(results: Results, gpu: str, waited_for: list[str]) -> str:
    """The page, its JSON and charts of the rows that there are; the summary for a terminal."""
    import datetime

    import attrs

    from wanstore.benchmarking.cold_starts import ColdStarts, Start
    from wanstore.benchmarking.page import summary, write
    from wanstore.benchmarking.report import BenchmarkReport, Environment
    from wanstore.benchmarking.rows import BenchmarkRow
    from wanstore.presets import PRESETS, Preset

    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    environment, rows, seconds = Environment(f"{gpu or 'CPU'}, without a row", 0.0, now), [], 0.0
    for found in map(results.read_json, results.names("rows")):
        seconds += found["seconds"]
        if "report" in found:
            report = BenchmarkReport.from_json(json.dumps(found["report"]))
            environment, rows = report.environment, [*rows, *report.rows]
        else:
            rows.append(BenchmarkRow(Preset(**found["recipe"]["preset"]), found["status"], found["reason"]))
    order = list(PRESETS)
    rows.sort(key=lambda row: order.index(row.preset.name))
    cold_starts = tuple(
        ColdStarts(form["form"], tuple(Start(**start) for start in form["starts"]), tuple(form["failures"]))
        for form in results.read_json(COLD_STARTS) or ()
    )
    command = (results.read_json("run.json") or {}).get("command", "")
    report = BenchmarkReport(attrs.evolve(environment, command=command), tuple(rows), cold_starts)
    with tempfile.TemporaryDirectory() as work:
        write(report, Path(work, f"{results.stem}.md"))
        written = {f"page/{file.relative_to(work)}": file.read_bytes() for file in Path(work).rglob("*.*")}
    texts = [summary(report)]
    texts += [f"cold start, {form.form}: {form.verdict}" for form in cold_starts]
    texts += [f"Without a row yet: {', '.join(waited_for)}"] if waited_for else []
    text = "\n".join([*texts, cost(seconds, gpu)])
    results.write({**written, "summary.txt": text.encode()})
    return text


@app.function(timeout=planning.DAY_SECONDS, env={"WANSTORE_DEVICE": DEVICE}, single_use_containers=True)
def conduct_cold_starts(volume: str, gpu: str, calls: int) -> None:
    """Call each form's class, one form after the other, and write the page after each."""
    results, found = Results(volume, gpu), []
    for form in cold_start_modal.FORMS:
        found.append(cold_start_modal.measure(form, calls))
        results.write({COLD_STARTS: json.dumps(found).encode()})
        write_page(results, gpu, waited_for=[])


def print_cold_start_plan(gpu: str, calls: int) -> None:
    forms = len(cold_start_modal.FORMS)
    span = (forms * calls * 10.0, forms * calls * 90.0)
    told = f"{forms} forms × {calls} calls, a fresh container each, the first of each form to make its snapshot"
    price = f", {planning.dollars(span, gpu, **CONTAINER)}" if gpu else ""
    print(f"{told}: about {' to '.join(map(planning.minutes, span))} minutes{price} (a guess at 10 to 90 s a start)")


def cost(seconds: float, gpu: str) -> str:
    if gpu and gpu not in PRICES.gpu_second:
        return f"{seconds:.0f} s of {gpu}, whose price is not in wanstore's table"
    usd = PRICES.usd(seconds, gpu=gpu, **CONTAINER)
    return f"{seconds:.0f} s of {gpu or 'CPU'} for about ${usd:.4f} (prices of {PRICES.date})"


@app.local_entrypoint()
def main(
    presets: str = "",
    steps: int = 0,
    rounds: int = 0,
    timeout: int = 0,
    gpu: str = GPU,
    quick: bool = False,
    eager: bool = False,
    resume: bool = False,
    fetch: bool = False,
    cold_start: bool = False,
    calls: int = 6,
    name: str = NAME,
    volume: str = VOLUME,
    out: str = "",
) -> None:
    from wanstore.errors import WanstoreError
    from wanstore.presets import PRESETS

    gpu = gpu if DEVICE == "cuda" else ""
    out = out or ("docs" if gpu else "build")
    results = Results(volume, gpu)
    if fetch:
        bring_home(results, out)
        return
    if cold_start:
        check_folder(out)
        if (gpu or GPU, name, volume) != (cold_start_modal.GPU, NAME, VOLUME):
            sys.exit(f"--cold-start measures {VOLUME}/{NAME} on an {cold_start_modal.GPU}: change cold_start_modal.py")
        print_cold_start_plan(gpu, calls)
        cold_start_modal.app.deploy(name=cold_start_modal.APP)
        conduct_cold_starts.remote(volume, gpu, calls)
        bring_home(results, out)
        return
    try:
        plans = planning.plan(
            [preset_to_run(preset) for preset in presets.split(",") if preset] or list(map(preset_to_run, PRESETS)),
            gpu,
            rounds=rounds or (1 if quick else None),
            steps=steps or (planning.QUICK_STEPS if quick else None),
            timeout_seconds=timeout or None,
            compiled=not eager,
        )
    except WanstoreError as error:
        sys.exit(str(error))
    check_folder(out)  # before a GPU is paid for
    print("\n".join(planning.lines(plans, gpu, **CONTAINER)), flush=True)

    mounted = {f"/{volume}": modal.Volume.from_name(volume).with_mount_options(read_only=True)}
    ended = conduct.with_options(volumes=mounted).remote(
        uuid.uuid4().hex, shlex.join(["modal", *sys.argv[1:]]), volume, name, gpu, list(plans), resume, eager
    )
    if "error" in ended:
        sys.exit(ended["error"])
    bring_home(results, out)


def check_folder(out: str) -> None:
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        sys.exit(f"{out} cannot be written ({error.strerror}). Name another folder with --out")


def bring_home(results: Results, out: str) -> None:
    """The page and all that belongs to it, from the Volume into the folder `out`."""
    summary = results.read("summary.txt")
    if summary is None:
        sys.exit("There is no page yet. Run this without --fetch first")
    for file in results.names("page"):
        target = Path(out, file.removeprefix("page/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(results.read(file) or b"")
    print(summary.decode())
    print(f"{Path(out, results.stem)}.md is written, with its JSON and pictures beside it")
