"""examples/benchmark_modal.py: presets fanned out over containers, one report at home."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.examples.account import Account
from wanstore.testing.manifests import seal_as_is

BENCHMARK = ("run", "examples/benchmark_modal.py")


def test_presets_are_measured_apart_and_reported_together(account: Account, tiny_fp16: Path, tmp_path: Path) -> None:
    """A container for each; the table, the Markdown file and its JSON say the same, in the order asked for."""
    folder = account.control.volumes.create("anime-models").folder / "wan2.1-fp16"
    shutil.copytree(tiny_fp16, folder)
    seal_as_is(folder)
    out = tmp_path / "site/benchmarks.md"
    result = account.modal(*BENCHMARK, "--presets", "480p/5s,480p/3s", "--out", str(out), WANSTORE_DEVICE="cpu")
    assert result.returncode == 0, result.stdout
    assert [container.name for container in account.control.containers.started] == ["measure"] * 2
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["preset"]["name"] for row in rows] == ["480p/5s", "480p/3s"] and all(row["rounds"] for row in rows)
    assert json.loads(out.with_suffix(".json").read_text())["safe_preset"] in ("480p/5s", "480p/3s")
    assert all(row["load_seconds"] > 0 and row["status"] == "ok" for row in rows)
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("| 480p")] == [
        "480p/5s",
        "480p/3s",
    ]
    assert "**480p/5s**" in out.read_text() and "**480p/3s**" in out.read_text()
    assert "for about $" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--presets", "8k/1h"], "There is no preset"), (["--out", "/proc/page.md"], "/proc cannot be written")],
)
def test_what_cannot_be_costs_nothing(account: Account, arguments: list[str], message: str) -> None:
    """A preset that there isn't, a page that can't be written: refused before any container starts."""
    before = len(account.control.containers.started)
    result = account.modal(*BENCHMARK, *arguments, WANSTORE_DEVICE="cpu")
    assert result.returncode == 1 and message in " ".join(result.stdout.split())
    assert len(account.control.containers.started) == before
