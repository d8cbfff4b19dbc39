"""examples/benchmark_modal.py: presets in containers of their own, rows on the Volume, one page at home."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.examples.account import ROOT, Account, wait_for
from tests.modal_loopback.container import Container
from wanstore.presets import PRESETS
from wanstore.testing.manifests import seal_as_is

BENCHMARK = ("run", "examples/benchmark_modal.py")
ON_CPU = {"WANSTORE_DEVICE": "cpu"}


@pytest.fixture(autouse=True)
def volume(account: Account, tiny_fp16: Path) -> Iterator[Path]:
    """The Volume as setup leaves it, with a tiny pipeline."""
    folder = account.control.volumes.create("anime-models").folder
    shutil.copytree(tiny_fp16, folder / "wan2.1-fp16")
    seal_as_is(folder / "wan2.1-fp16", weights="random")
    yield folder
    account.control.lose_clients()  # what a failed test left running is not the next one's
    wait_for(lambda: not any(container.at_work() for container in account.control.containers.alive))
    account.control.volumes.delete(account.control.volumes.named("anime-models").volume_id)  # type: ignore[union-attr]


def measuring(account: Account, preset: str) -> Container:
    """The container that measures a preset, as soon as there is one."""

    def find() -> Container | None:
        containers = [one for one in account.control.containers.alive if one.name == "measure"]
        return next((one for one in containers for (args, _) in one.arguments() if args[3].preset.name == preset), None)

    return wait_for(find)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "benchmarks-cpu.json").read_text())["rows"]
    return rows


def test_presets_are_measured_apart_and_reported_together(
    account: Account, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container for each; the plan before, then table, page, charts and JSON.

    It is the page of a CPU, which says so by its name. Clips of random weights are noise, so there is none. Blocks that
    cannot be compiled, here for want of a compiler, stop nothing: rows say why their clips were made without.
    """
    monkeypatch.setitem(account.control.containers.environment, "CXX", "/nowhere/c++")
    before = len(account.control.containers.started)
    result = account.modal(*BENCHMARK, "--presets", "480p/5s,480p/3s", "--out", str(tmp_path), **ON_CPU)
    assert result.returncode == 0, result.stdout
    names = [one.name for one in account.control.containers.started[before:]]
    assert names == ["conduct", "compile_blocks", "measure", "measure"]
    lines = result.stdout.splitlines()
    plan = next(number for number, line in enumerate(lines) if line.startswith("preset "))
    assert [line.split()[0] for line in lines[plan + 1 : plan + 3]] == ["480p/5s", "480p/3s"]
    assert any("480p/3s: 100%" in line for line in lines[plan:]), "progress is told"
    assert "for about $" in result.stdout

    rows = rows_of(tmp_path)
    assert [row["preset"]["name"] for row in rows] == ["480p/3s", "480p/5s"] and all(row["rounds"] for row in rows)
    assert all(row["load_seconds"] > 0 and row["status"] == "ok" for row in rows)
    assert all(row["compiled"]["reason"] == "none are stored" for row in rows)
    page = (tmp_path / "benchmarks-cpu.md").read_text()
    assert "modal run examples/benchmark_modal.py --presets 480p/5s,480p/3s" in page
    assert "**480p/5s**" in page and "**480p/3s**" in page and "Random weights" in page
    drawn = sorted(file.name for file in (tmp_path / "assets/benchmarks-cpu").iterdir())
    assert drawn == ["memory.svg", "time.svg"] and all(f"assets/benchmarks-cpu/{name}" in page for name in drawn)
    assert (volume / "benchmarks/cpu/page/benchmarks-cpu.md").read_text() == page


@pytest.mark.slow
def test_blocks_are_compiled_first_and_kept_for_the_endpoint(account: Account, volume: Path, tmp_path: Path) -> None:
    """On the Volume, by a container that may write to it. Rows are with them, and say what they save."""
    before = len(account.control.containers.started)
    result = account.modal(*BENCHMARK, "--presets", "480p/3s", "--out", str(tmp_path), **ON_CPU)
    assert result.returncode == 0, result.stdout
    assert [one.name for one in account.control.containers.started[before:]] == ["conduct", "compile_blocks", "measure"]
    (functions,) = volume.glob("wan2.1-fp16.compiled-*/1x8.function")
    assert account.store("anime-models").verify(functions.parent.name).ok
    (row,) = rows_of(tmp_path)
    assert row["compiled"]["eager_step_seconds"] > 0 and not row["compiled"]["reason"]
    assert "## Compiled blocks" in (tmp_path / "benchmarks-cpu.md").read_text()


def test_whatever_goes_wrong_the_page_has_a_row_for_each_preset(
    account: Account, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One preset hangs beyond its time limit, one container is killed, the client goes away: --resume mends it.

    What was measured stays as it was.
    """
    monkeypatch.setattr(account.control.containers, "most", 4)
    arguments = (*BENCHMARK, "--eager", "--timeout", "40", "--out", str(tmp_path))
    process = account.start(*arguments, **ON_CPU)
    measuring(account, "480p/5s").kill()
    os.killpg(measuring(account, "720p/5s").process_id, signal.SIGSTOP)
    saved = volume / "benchmarks/cpu/rows/480p-3s.json"
    wait_for(saved.exists)
    wait_for((volume / "benchmarks/cpu/rows/480p-5s.json").exists)
    process.kill()
    process.communicate()
    account.control.lose_clients()
    wait_for(lambda: not account.control.containers.alive)
    kept = saved.read_bytes()

    process = account.start(*arguments, "--resume", **ON_CPU)
    os.killpg(measuring(account, "720p/5s").process_id, signal.SIGSTOP)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "480p/3s was measured before" in output and saved.read_bytes() == kept
    rows = rows_of(tmp_path)
    assert [row["preset"]["name"] for row in rows] == list(PRESETS)
    assert [row["status"] for row in rows] == ["ok", "ok", "timeout", "ok"]
    assert "hit its timeout of 59s" in rows[2]["reason"]


def test_cold_starts_of_each_form_are_on_the_page(account: Account, tmp_path: Path) -> None:
    """A fresh container for each call of a deployed class. Each makes its own snapshot here, so none of them counts."""
    before = len(account.control.containers.started)
    result = account.modal(*BENCHMARK, "--cold-start", "--calls", "1", "--out", str(tmp_path), **ON_CPU)
    assert result.returncode == 0, result.stdout
    forms = ["GpuSnapshot.*", "DeferredSnapshot.*", "ResidentSnapshot.*", "NoSnapshot.*"]
    assert [one.name for one in account.control.containers.started[before:]] == ["conduct_cold_starts", *forms]
    found = json.loads((tmp_path / "benchmarks-cpu.json").read_text())["cold_starts"]
    assert [len(form["starts"]) for form in found] == [1] * 4 and not any(form["failures"] for form in found)
    for form in found:
        (start,) = form["starts"]
        assert start["seconds"] == pytest.approx(start["placing"] + start["loading"]) and start["size_bytes"] > 0
    assert "## Cold starts" in (tmp_path / "benchmarks-cpu.md").read_text()


@pytest.mark.parametrize(
    ("form", "began_at", "placing", "loading", "size_bytes", "restored"),
    [("gpu", 50.0, 2.0, 1.0, 0, True), ("gpu", 101.0, 1.0, 2.0, 14, False), ("none", 101.0, 1.0, 2.0, 14, False)],
)
def test_a_start_counts_what_came_after_the_call(
    monkeypatch: pytest.MonkeyPatch, form: str, began_at: float, placing: float, loading: float, size_bytes: int,
    restored: bool,
) -> None:  # fmt: skip
    """A first half that was over before the call is the snapshot's; otherwise this very start made it."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    start_of = import_module("cold_start_modal").start_of
    told = {"began_at": began_at, "went_on_at": 102.0, "ready_at": 103.0, "weights": [[(0.5, 14)], []]}
    assert start_of(form, 100.0, told) == {
        "seconds": 3.0, "placing": placing, "loading": loading, "weights": 0.5 if size_bytes else 0,
        "size_bytes": size_bytes, "restored": restored,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--presets", "8k/1h"], "There is no preset"), (["--out", "/proc/docs"], "cannot be written"),
     (["--fetch"], "There is no page yet"), (["--name", "other"], "other")],
)  # fmt: skip
def test_what_cannot_be_costs_no_gpu(account: Account, arguments: list[str], message: str) -> None:
    """A preset or pipeline that there isn't, a folder that can't be written, a page that there isn't: one line."""
    before = len(account.control.containers.started)
    result = account.modal(*BENCHMARK, *arguments, **ON_CPU)
    assert result.returncode == 1 and message in " ".join(result.stdout.split()), result.stdout
    assert "Traceback" not in result.stdout
    assert "measure" not in [one.name for one in account.control.containers.started[before:]]


def test_what_cannot_be_done_in_time_is_refused_with_its_cost(account: Account) -> None:
    """On an L4, by arithmetic, before anything is started."""
    before = len(account.control.containers.started)
    result = account.modal(*BENCHMARK, "--presets", "720p/10s", "--timeout", "3600")
    told = " ".join(result.stdout.split())
    assert result.returncode == 1 and "720p/10s cannot be measured in 60 minutes" in told and "$" in told
    assert len(account.control.containers.started) == before
