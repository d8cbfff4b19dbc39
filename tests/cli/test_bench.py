"""`wanstore bench` as a new user tries it, on a tiny pipeline on the CPU: a page, a JSON, and runs that are stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.in_here import in_here
from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.presets import PRESETS
from wanstore.testing.manifests import seal_as_is

QUICK = ("--device", "cpu", "--dtype", "vae=float32")
"""A CPU takes eight times as long to decode in float16."""
SMALL = ("--size", "32x32", "--frames", "5", *QUICK)
TWO = ("--presets", "480p/3s,480p/5s", "--steps", "2", *SMALL)


@pytest.fixture(scope="module")
def store(tiny_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one pipeline, `w`."""
    folder = tmp_path_factory.mktemp("bench") / "store"
    seal_as_is(Path(shutil.copytree(tiny_fp16, folder / "w")), weights="random")
    return folder


def start(store: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wanstore", "bench", "w", "--store", store, *arguments]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def bench(store: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    process = start(store, *arguments)
    output, errors = process.communicate(timeout=200)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


def when_one_is_measured(process: subprocess.Popen[str], out: Path, signal_number: int) -> list[psutil.Process]:
    """Send the signal as soon as the first row is saved; the command's own processes at that time."""
    saved = out.with_name(f"{out.stem}.partial.json")
    while not saved.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal_number)
    return children


def test_one_command_writes_the_page_and_its_json(store: Path, tmp_path: Path) -> None:
    """The table on the terminal, the page, the JSON with the safe preset; a preset that no memory holds is a row."""
    old = BenchmarkReport(Environment("H100", 79.2, "2026-01-01"), (BenchmarkRow(PRESETS["480p/3s"], "crash"),))
    (tmp_path / "old.json").write_text(old.to_json())
    (tmp_path / "more.toml").write_text(
        '["stamp"]\nwidth = 32\nheight = 32\nframes = 5\nsteps = 3\n'
        '["planet"]\nwidth = 16000000\nheight = 16000000\nframes = 5\n'
    )
    out = tmp_path / "site/benchmarks.md"
    run = bench(
        store, "--presets", "stamp,planet", "--presets-file", tmp_path / "more.toml", *QUICK,
        "--rounds", "2", "--attention", "auto", "--compare", tmp_path / "old.json", "--out", out,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "safe preset" in run.stdout and "not compared, the machines differ" in run.stdout
    report = BenchmarkReport.from_json(out.with_suffix(".json").read_bytes())
    found = [(row.preset.name, row.status, len(row.rounds)) for row in report.rows]
    assert found == [("stamp", "ok", 2), ("planet", "out of memory", 0)]
    assert json.loads(out.with_suffix(".json").read_text())["safe_preset"] == "stamp"
    page = out.read_text()
    assert "RANDOM weights" in page and "wanstore bench w" in page and "Pictures" not in page


def test_a_run_in_which_no_preset_worked_has_failed(store: Path, tmp_path: Path) -> None:
    """Status 1 and one line; the page tells each preset's reason, and so does the JSON document."""
    out = tmp_path / "page.md"
    run = bench(store, "--presets", "480p/3s", "--timeout", "0.1", *SMALL, "--out", out, "--json")
    assert run.returncode == 1 and run.stderr.startswith(
        f"wanstore: No preset worked. See each preset's reason in {out}."
    ), run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert json.loads(run.stdout)["rows"][0]["status"] == "timeout" and "not done after 0.1 s" in out.read_text()


def test_a_second_run_tells_how_its_clips_differ_from_the_firsts(store: Path, tmp_path: Path) -> None:
    """The same dtype gives the same clip, though the second run has other rounds; the page has the scores."""
    clip, out = ("--presets", "480p/3s", "--steps", "2", *SMALL), tmp_path / "page.md"
    kept = bench(store, *clip, "--keep-clips", tmp_path / "kept", "--out", out)
    assert kept.returncode == 0 and (tmp_path / "kept/480p-3s.npy").is_file(), kept.stderr
    first = out.with_suffix(".json").rename(tmp_path / "first.json")
    run = bench(
        store, *clip, "--rounds", "2", "--warmup", "0", "--reference", tmp_path / "kept", "--out", out, "--json",
        "--compare", first,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["rows"][0]["quality"]["scores"]["psnr"] == 100
    assert {figure["name"] for figure in told["comparison"]["figures"]} >= {"clip, p50", "step"}
    assert BenchmarkReport.from_json(run.stdout).rows, "what is printed is a report for the next comparison"
    assert "psnr" in out.read_text() and "ssim" in out.read_text()


def test_ctrl_c_keeps_what_was_measured(store: Path, tmp_path: Path) -> None:
    """Status 1, one line that says so, and a page of what there is; no process is left behind."""
    out = tmp_path / "page.md"
    process = start(store, *TWO, "--out", out)
    children = when_one_is_measured(process, out, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("wanstore: Interrupted: 1 of 2 presets") and "Traceback" not in errors
    assert [row.preset.name for row in BenchmarkReport.from_json(out.with_suffix(".json").read_bytes()).rows] == [
        "480p/3s"
    ]
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_killed_run_measures_only_what_is_missing(store: Path, tmp_path: Path) -> None:
    """Its worker dies with it. The same command again keeps the first row as it was."""
    out = tmp_path / "page.md"
    process = start(store, *TWO, "--out", out)
    children = when_one_is_measured(process, out, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not psutil.wait_procs(children, timeout=10)[1]
    saved = json.loads((tmp_path / "page.partial.json").read_text())

    run = bench(store, *TWO, "--out", out, "--json")
    assert run.returncode == 0, run.stderr
    rows: list[Any] = json.loads(run.stdout)["rows"]
    assert [row["preset"]["name"] for row in rows] == ["480p/3s", "480p/5s"]
    assert rows[0].pop("clip_seconds") > 0, "it follows from the rest"
    assert [rows[0]] == list(saved.values())
    assert not (tmp_path / "page.partial.json").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--presets", "480p/3s,8k/1h"], 2, "There is no preset '8k/1h'. Use one of: 480p/3s, 480p/5s"),
        (["--presets", ","], 2, "names no preset. Use some of: 480p/3s, 480p/5s"),
        (["--memory-gib", "nan"], 2, "not a finite number"),
        (["--timeout", "inf"], 2, "not a finite number"),
        (["--steps", "none"], 2, "neither N nor PRESET=N"),
        (["--steps", "8k/1h=4"], 2, "not among the presets"),
        (["--size", "65x64"], 2, "multiple of 16"),
        (["--memory-gib", "22", "--device", "cpu"], 1, "Only a GPU's memory"),
        (["--dtype", "vae"], 2, "not COMPONENT=DTYPE"),
        (["--dtype", "vae=float32", "--dtype", "transformer=bfloat16"], 2, "Choose float16 or float32"),
        (["--memory", "little"], 2, "'auto', 'resident', 'offload'"),
        (["--reference", "no/such/folder"], 2, "does not exist"),
        (["--reference", ".", "--keep-clips", "."], 1, "Clips can't be kept in the reference folder"),
        (["--compare", __file__], 1, "not a benchmark report"),
        (["--out", "report.json"], 2, "name the page"),
        (["--presets", "480p/3s,", "--out", "/proc/page.md"], 1, "/proc cannot be written"),
        (["--keep-clips", f"{__file__}/clips"], 1, "cannot be written (Not a directory)"),
    ],
)
def test_faults_are_told_without_a_traceback(
    store: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    """Before anything is measured."""
    run = in_here("bench", "w", "--store", store, "--out", tmp_path / "page.md", *arguments)
    assert (run.exit_code, "Traceback" in run.stderr) == (status, False), run.stderr
    assert message in run.stderr and not list(tmp_path.iterdir())
