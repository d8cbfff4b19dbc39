"""The report as people read it: the page with its charts, the short table, the terminal."""

from __future__ import annotations

import importlib.util
import re
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest
from rich.console import Console
from rich.table import Table

from tests.benchmarking.reports import clip, failed, report, row
from wanstore.benchmarking import page
from wanstore.benchmarking.cold_starts import ColdStarts, Start
from wanstore.benchmarking.cost import PRICES
from wanstore.benchmarking.report import BenchmarkReport
from wanstore.benchmarking.rows import CompiledBlocks, Lossless, MemoryPeaks, Quality
from wanstore.cli._terminal import text_table
from wanstore.errors import DiskFullError, NotSupportedError

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws the charts: pip install 'wanstore[bench]'"
)

FULL = report(
    row(memory=MemoryPeaks(10.0, 11.0, 12.0), load_seconds=6.0, first_clip_seconds=60.0, energy_joules=2000.0),
    row("480p/5s", 2.0, quality=Quality(("frame 3 is black",), {"flicker": 0.125}, {"psnr": "no reference clip"})),
    row("720p/5s", 5.0, steps=10),
    failed(),
)


def written(found: BenchmarkReport, folder: Path, **options: Any) -> str:
    page.write(found, folder / "docs/benchmarks.md", **options)
    return (folder / "docs/benchmarks.md").read_text()


def section(text: str, title: str) -> str:
    """The lines below a heading that begins with `title`."""
    return re.split(r"^## ", text.split(f"\n## {title}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def cells(text: str, first: str) -> list[str]:
    """The cells of a table's row that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith((f"| {first} |", f"| **{first}** |")))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_json_lies_beside_the_page(tmp_path: Path) -> None:
    """It reads back as the report, and the page links to it."""
    text = written(FULL, tmp_path)
    assert BenchmarkReport.from_json((tmp_path / "docs/benchmarks.json").read_bytes()) == FULL
    assert "(benchmarks.json)" in text


def test_a_page_does_not_replace_its_own_json(tmp_path: Path) -> None:
    """It is refused before either is written."""
    with pytest.raises(NotSupportedError, match=r"where its JSON goes\. Name the page something like report\.md"):
        page.write(FULL, tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_results_have_seconds_memory_and_dollars(tmp_path: Path) -> None:
    """A row for each preset, those that failed included; the median clip, torch and device."""
    results = section(written(FULL, tmp_path), "Results")
    dollars = f"{PRICES.usd(53.5, gpu='H100'):.4f}"
    assert cells(results, "480p/3s") == ["ok", "53.5", "1.00", "10.0 / 12.0", dollars]
    assert cells(results, "720p/10s") == ["out of memory", "–", "–", "–", "–"]
    assert "3 GiB too much" in results and "beyond the trained length" in results


def test_several_rounds_show_their_spread_and_a_p95_only_if_they_are_many(tmp_path: Path) -> None:
    """Of three clips a p95 would be a guess."""
    few = row(rounds=(clip(1.0), clip(1.2), clip(1.1)))
    many = row("480p/5s", rounds=tuple(clip(1.0 + take / 50) for take in range(20)))
    results = section(written(report(few, many), tmp_path), "Results")
    assert cells(results, "480p/3s")[1] == "58.5 (53.5 to 63.5)"
    assert cells(results, "480p/5s")[1] == "63.0 (53.5 to 72.5, p95 71.5)"


def test_extrapolated_rows_are_marked(tmp_path: Path) -> None:
    """In the table, with what the mark means; and without such a row there is no mark."""
    results = section(written(FULL, tmp_path), "Results")
    assert cells(results, "720p/5s")[:2] == ["ok, 10 of 50 steps measured", "≈ 254"]
    assert cells(results, "720p/5s")[-1].startswith("≈ ") and "≈ is extrapolated" in results
    assert "≈" not in written(report(row()), tmp_path)


def test_the_safe_preset_comes_with_its_reasons(tmp_path: Path) -> None:
    """And none comes with its reasons too."""
    safe = section(written(FULL, tmp_path), "Safe preset: 480p/3s")
    assert all(f"- {reason}" in safe for reason in FULL.safe.reasons)
    assert "did not work: out of memory" in section(written(report(failed()), tmp_path), "Safe preset: none")


@pytest.mark.parametrize(("weights", "warned"), [("Random fp16 weights", True), ("Wan 2.1 1.3B at 0fad780", False)])
def test_random_weights_are_said_plainly(tmp_path: Path, weights: str, warned: bool) -> None:
    """Before anything else is told."""
    text = written(report(row(), weights=weights), tmp_path)
    assert ('!!! warning "Random weights"' in text.split("\n## ")[0]) == warned and weights in text


def test_a_clip_is_priced_with_and_without_its_cold_start(tmp_path: Path) -> None:
    """Three figures, and whose prices they are."""
    cost = section(written(FULL, tmp_path), "Cost")
    up, shared, alone = (f"{PRICES.usd(s, gpu='H100'):.4f}" for s in (53.5, 53.5 + 6 / PRICES.clips_per_start, 59.5))
    assert cells(cost, "480p/3s") == ["6.00", up, shared, alone]
    assert cells(cost, "480p/5s")[0] == "–" and PRICES.date in cost and PRICES.source in cost


def test_own_prices_are_taken(tmp_path: Path) -> None:
    """Their date and source stand on the page."""
    prices = attrs.evolve(PRICES, gpu_second={"H100": 1.0, "L4": 1.0}, date="2027-01-01", source="our contract")
    text = written(FULL, tmp_path, prices=prices)
    assert cells(section(text, "Results"), "480p/3s")[-1] == "53.50"
    assert "our contract" in section(text, "Cost") and "2027-01-01" in section(text, "Cost")


def test_a_device_without_a_price_has_no_dollars(tmp_path: Path) -> None:
    """It is said, not guessed."""
    text = written(report(row(), device="x86_64 CPU"), tmp_path)
    assert (
        "price table has no x86_64 CPU" in section(text, "Cost")
        and cells(section(text, "Results"), "480p/3s")[-1] == "–"
    )


def test_checks_and_scores_are_told_and_why_one_is_missing(tmp_path: Path) -> None:
    """A column for each preset."""
    quality = section(written(FULL, tmp_path), "Quality")
    assert cells(quality, "checks") == ["passed", "failed", "passed"]
    assert cells(quality, "flicker") == ["–", "0.1250", "–"]
    assert "**480p/5s** failed: frame 3 is black" in quality and "psnr is missing: no reference clip" in quality


def test_cold_starts_are_told_by_form_with_a_verdict(tmp_path: Path) -> None:
    """A start that made its snapshot does not count; failures do, in words too."""
    made, quick, slow = (
        Start(40.0, 20.0, 20.0),
        Start(3.0, 2.5, 0.5, restored=True),
        Start(4.0, 3.0, 1.0, restored=True),
    )
    whole = Start(30.0, 10.0, 20.0, 4.0, 16 * 10**9)
    forms = (
        ColdStarts("gpu", (made, quick, slow), ("the restore crashed",)),
        ColdStarts("none", (whole,)),
        ColdStarts("cpu", (made,)),
    )
    found = section(written(attrs.evolve(report(row()), cold_starts=forms), tmp_path), "Cold starts")
    assert cells(found, "gpu") == ["2", "3.50 (3.00 to 4.00)", "2.75", "0.750", "–", "1 of 4 failed; within 5 s"]
    assert cells(found, "none") == ["1", "30.0", "10.0", "20.0", "4.00", "beyond 5 s"]
    assert cells(found, "cpu")[0] == "0" and cells(found, "cpu")[-1] == "no start counts"
    assert "- **gpu**: the restore crashed." in found
    assert "Not measured here" in section(written(report(row()), tmp_path), "Cold starts")


def test_an_l4_is_estimated_and_marked_as_not_measured(tmp_path: Path) -> None:
    """In a table of its own, with its assumptions; for the presets that failed here too."""
    found = section(written(FULL, tmp_path), "An L4, by arithmetic: not measured")
    assert cells(found, "480p/3s")[:3] == ["12.9", "257", "3.9 to 5.9"] and cells(found, "720p/10s")[1] == "–"
    assert "Nothing here was measured on an L4" in found and "40 to 60 TFLOP/s" in found


def test_an_l4_is_not_estimated_where_it_says_nothing(tmp_path: Path) -> None:
    """When an L4 was measured, and for clips of a size that is no preset's."""
    tiny = attrs.evolve(row(), preset=attrs.evolve(row().preset, width=32, height=32, frames=5))
    for found in (report(row(), device="NVIDIA L4"), report(tiny)):
        assert "by arithmetic" not in written(found, tmp_path)


def test_the_page_tells_how_it_was_measured(tmp_path: Path) -> None:
    """Device, cap, machine, versions, weights, command: what a reader needs to do it again."""
    told = section(written(report(row(), memory_cap_gib=22.0), tmp_path), "How it was measured")
    for fact in ("NVIDIA H100", "held to 22 GiB", "16 cores", "torch 2.11.0", "random fp16", "wanstore bench"):
        assert fact in told


def test_a_component_in_another_dtype_is_told(tmp_path: Path) -> None:
    """And only then."""
    told = section(written(report(row(), dtype="vae=float32"), tmp_path), "How it was measured")
    assert cells(told, "dtype") == ["vae=float32, the others float16"]
    assert "| dtype |" not in written(report(row()), tmp_path)


def test_plans_of_memory_are_told_with_their_peaks(tmp_path: Path) -> None:
    """Predicted beside measured, by phase; a preset that has neither is left out, and so is an empty table."""
    phases = {"text_encoding": 12.0, "denoising": 4.0, "decoding": 6.0, "output": 12.5}
    measured = {"text_encoding": 11.5, "denoising": 3.9}
    planned = row(memory_plan="text_encoder offloaded", predicted_gib=phases, phase_peaks_gib=measured)
    resident = row("720p/5s", phase_peaks_gib=measured)
    text = written(report(planned, row("480p/5s"), resident, memory="offload"), tmp_path)
    table = section(text, "Memory").split("| preset | plan |")[1]
    assert cells(table, "480p/3s") == ["text_encoder offloaded", "12.0 / 11.5", "4.0 / 3.9", "6.0 / –", "12.5 / –"]
    assert cells(table, "720p/5s") == ["–", "– / 11.5", "– / 3.9", "– / –", "– / –"] and "480p/5s" not in table
    assert "memory plan: text_encoder offloaded" in section(text, "Results")
    assert "memory plan: text_encoder offloaded" in section(text, "Safe preset")
    assert cells(section(text, "How it was measured"), "memory plan") == ["offload, for every preset"]
    assert "plan" not in section(written(report(row()), tmp_path), "Memory")


def terminal_table(found: BenchmarkReport) -> Table:
    """As `wanstore bench` prints it."""
    title, columns, rows = page.table_of(found)
    return text_table(columns, rows, title=title)


def test_odd_reasons_do_not_break_the_tables(tmp_path: Path) -> None:
    """An error message with a bar, a line break and brackets stays in its cell, on paper and on the terminal."""
    found = report(failed(reason="a | b\n[bold]c"))
    line = next(line for line in page.summary(found).splitlines() if line.startswith("| 720p/10s"))
    assert "a \\| b [bold]c" in line and len(re.split(r"(?<!\\)\|", line)) == 9
    console = Console(width=200, record=True, file=StringIO())
    console.print(terminal_table(found))
    assert "[bold]c" in console.export_text()


def test_the_terminal_shows_every_preset_and_marks_the_safe_one() -> None:
    """The house's table."""
    console = Console(width=200, record=True, file=StringIO())
    console.print(terminal_table(FULL))
    lines = console.export_text().splitlines()
    assert [name for name in ("480p/3s", "480p/5s", "720p/5s", "720p/10s") if any(name in line for line in lines)] == [
        one.preset.name for one in FULL.rows
    ]
    assert [line.split()[0] for line in lines if "safe preset" in line] == ["480p/3s"]


def test_the_summary_is_the_table_and_the_safe_preset() -> None:
    """What `summary` gives."""
    text = page.summary(FULL)
    assert text == page.summary(FULL)
    assert cells(text, "480p/3s")[1:] == ["ok", "53.5", "–", "1.00", "10.0"] and "Safe preset: **480p/3s**" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_page_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """No room on the disk, for one."""
    (tmp_path / "benchmarks.json").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"benchmarks\.md"):
        page.write(FULL, tmp_path / "benchmarks.md")


def test_without_matplotlib_the_page_says_how_to_get_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written all the same, and names no picture."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    text = written(FULL, tmp_path)
    assert "wanstore[bench]" in text and "![" not in text and not (tmp_path / "docs/assets").exists()


@needs_matplotlib
def test_charts_are_svg_beside_the_page(tmp_path: Path) -> None:
    """The links lead to them; every preset has its line, those that failed with what happened; limits are named."""
    text = written(attrs.evolve(FULL, environment=report(memory_cap_gib=22.0).environment), tmp_path)
    links = re.findall(r"!\[[^]]*\]\(([^)]*\.svg)\)", text)
    assert links == ["assets/benchmarks/time.svg", "assets/benchmarks/memory.svg"]
    time, memory = (said(tmp_path / "docs" / link) for link in links)
    assert {"480p/3s", "480p/5s", "720p/5s", "720p/10s", "out of memory", "denoising", "decoding"} <= time
    assert {"10.0 GiB", "out of memory"} <= memory
    assert "peak memory, GiB (beyond the axis: safe up to 17.6, held to 22, the device's 80.0)" in memory


@needs_matplotlib
def test_the_memory_chart_fits_its_bars_and_draws_the_limits_that_are_near(tmp_path: Path) -> None:
    """Lines within reach of the bars are drawn, the others are named below the axis."""
    written(attrs.evolve(FULL, environment=report(memory_cap_gib=14.0).environment), tmp_path)
    memory = said(tmp_path / "docs/assets/benchmarks/memory.svg")
    assert {"safe up to 11.2", "held to 14", "peak memory, GiB (beyond the axis: the device's 80.0)"} <= memory


@needs_matplotlib
def test_the_same_report_gives_the_same_pictures(tmp_path: Path) -> None:
    """So that a page that is written again shows no change of nothing."""
    for folder in ("once", "twice"):
        written(FULL, tmp_path / folder)
    for name in ("time.svg", "memory.svg"):
        once, twice = (tmp_path / folder / "docs/assets/benchmarks" / name for folder in ("once", "twice"))
        assert once.read_bytes() == twice.read_bytes()


@needs_matplotlib
def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    """Presets that all failed have no seconds and no memory to show."""
    assert "![" not in written(report(failed()), tmp_path)


def test_each_clip_has_its_pictures(tmp_path: Path) -> None:
    """Those that the row names, beside its preset; without any there is no such section."""
    text = written(report(row(frames=("assets/benchmarks/480p-3s.jpg",)), row("480p/5s")), tmp_path)
    assert "![Frames of 480p/3s](assets/benchmarks/480p-3s.jpg)" in section(text, "Pictures")
    assert "Frames of 480p/5s" not in text and "## Pictures" not in written(report(row()), tmp_path)


def test_compiled_blocks_stand_beside_eager_ones(tmp_path: Path) -> None:
    """What they save, what they cost a start, and from which clip on they pay; a preset without them says why."""
    fast = row(compiled=CompiledBlocks("", 130.0, 3.0, {"psnr": 57.1, "ssim": 0.9991}))
    slow = row("480p/5s", compiled=CompiledBlocks("none are stored", 0.0))
    text = written(report(fast, slow), tmp_path)
    table = section(text, "Compiled blocks")
    assert "| 480p/3s | 3.00 | 1.00 | 3.00× | 100 | 130 | 2 | 57.1 | 0.9991 |" in table and "480p/5s" not in table
    assert "no compiled blocks: none are stored" in section(text, "Results")
    assert "## Compiled blocks" not in written(report(row()), tmp_path)


def test_a_preset_that_changes_the_clip_says_by_how_much(tmp_path: Path) -> None:
    """And that this is not whether it is still good."""
    found = row(lossless=Lossless(106.0, {"psnr": 24.5, "ssim": 0.8}))
    quick = attrs.evolve(found, preset=attrs.evolve(found.preset, cache="first_block=0.1", guidance_until=0.6))
    table = section(written(report(quick), tmp_path), "Presets that change the clip")
    assert "first_block=0.1, guidance until 60% | 106 |" in table and "| 24.5 | 0.8000 |" in table and "eyes" in table
    assert "## Presets that change the clip" not in written(report(row()), tmp_path)


def said(svg: Path) -> set[str]:
    """The texts in a picture."""
    found = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return {"".join(one.itertext()).strip() for one in found}
