"""What a type checker says of a program that uses wanstore."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

RIGHT = """
from pathlib import Path

import wanstore
from wanstore import MemoryPlan, Preset, WanPipeline
from wanstore.choices import PresetName
from wanstore.loading import LoadReport, Phase, TransferRecord

store = wanstore.open_store("/data/models")
manifest = wanstore.setup("OWNER/NAME", store, name="w", notes={"attention": "native"})
size: int = manifest.size_bytes
pipe: WanPipeline = wanstore.load("w", store=store, device="cuda", dtype={"vae": "float32"}, attention="xformers")
other = wanstore.load(Path("/data/models/w"), memory=MemoryPlan(offloaded=("text_encoder",)), weights="deferred")
wanstore.activate(other, "cuda")
report: LoadReport = pipe.load_report
phase: Phase = report.phase("weights")
text: str = report.to_json()
transfer: TransferRecord | None = report.transfer
if pipe.activation_report is not None:
    print(pipe.activation_report.seconds)
if pipe.memory_plan is not None:
    print(pipe.memory_plan.offloaded)
frames = pipe("a cat", height=480, width=832, num_frames=49, num_inference_steps=30).frames
with pipe.lock:
    pipe.forget_prompts()
found = wanstore.bench("w", store=store, presets=["480p/3s"], steps=10, rounds=3, attention="auto")
safe: str | None = found.safe_preset
measured = wanstore.benchmark(pipe, ["480p/3s", Preset("small", width=64, height=64, frames=9)], progress=True)
wanted: list[PresetName] = ["480p/3s", "720p/5s"]
wanstore.compile_blocks("w", presets=wanted, progress=False)
try:
    store.verify("w")
except wanstore.WanstoreError as error:
    print(error.what, error.next_step, error.resumable)
"""

WRONG = """
import wanstore

pipe = wanstore.load("w", store="/data/models")
wanstore.laod("w")
wanstore.load("w", dtype={"vea": "float32"})
wanstore.load("w", dtype={"vae": "float8"})
wanstore.load("w", memory="streamed")
wanstore.load("w", weights="defered")
wanstore.load("w", attention="xfromers")
wanstore.bench("w", ronds=3)
wanstore.bench("w", memory="half")
wanstore.bench("w", presets=["480p/2s"])
wanstore.bench("w", presets="480p/3s")
wanstore.compile_blocks("w", presets=["480p"])
wanstore.load("w", progress="bars")
pipe("a cat", num_frame=49)
pipe.memory_plan.offloaded
pipe.activation_report.seconds
"""


def complaints(program: str, folder: Path) -> dict[int, str]:
    """What `mypy --strict` says of a program, by line."""
    path = folder / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--config-file", "pyproject.toml", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(rf"^{re.escape(str(path))}:(\d+): error: (.*)$", done.stdout, flags=re.MULTILINE)
    assert bool(found) == bool(done.returncode), done.stdout
    return {int(line): text for line, text in found}


def test_a_program_that_uses_all_of_it_is_accepted(tmp_path: Path) -> None:
    """Reports, plan, lock and choices have their types, and None is among them where it may come."""
    assert complaints(RIGHT, tmp_path) == {}


def test_misspelled_names_and_values_are_refused(tmp_path: Path) -> None:
    """Each line after the first two is an error of its own."""
    lines = WRONG.splitlines()
    first = lines.index('wanstore.laod("w")') + 1
    assert set(complaints(WRONG, tmp_path)) == set(range(first, len(lines) + 1))
