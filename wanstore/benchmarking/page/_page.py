"""A report as people read it: a page of the site with charts, a short Markdown table, a table for the terminal."""

from __future__ import annotations

from pathlib import Path

from wanstore._error_translation import plain_os_errors
from wanstore.benchmarking._outputs import check_page
from wanstore.benchmarking.cost import PRICES, Prices
from wanstore.benchmarking.page import _sections as sections
from wanstore.benchmarking.page._charts import draw
from wanstore.benchmarking.page._markdown import NONE, clip_of, measured_on, number, result_of, spread_of, table
from wanstore.benchmarking.report import BenchmarkReport
from wanstore.benchmarking.rows import BenchmarkRow

_COLUMNS = ("preset", "clip", "result", "#s, p50", "#quickest to slowest", "#s a step", "#peak GiB")


def summary(report: BenchmarkReport) -> str:
    """Short Markdown: what was measured on, the table of presets, and the safe one with its reasons."""
    lines = [measured_on(report.environment), ""]
    lines += table(_COLUMNS, [_short(row) for row in report.rows])
    lines += ["", f"Safe preset: **{report.safe.preset or 'none'}**", "", *(f"- {why}" for why in report.safe.reasons)]
    return "\n".join(lines) + "\n"


def write(report: BenchmarkReport, path: Path, *, prices: Prices | None = None) -> None:
    """The whole page at `path`, the JSON beside it, and pictures in `assets/NAME/` beside it.

    Paths in a row's `frames` are taken from the page's folder. Without matplotlib and Pillow there are no pictures,
    and the page says how to get them. Raises `AccessError` or `DiskFullError`, and
    `NotSupportedError` where the page would replace its JSON.
    """
    prices = prices or PRICES
    check_page(path)
    with plain_os_errors(path):
        path.with_suffix(".json").write_text(report.to_json() + "\n", encoding="utf-8")
        pictures = draw(report, path.parent, f"assets/{path.stem}")
        parts = [
            sections.opening(report, path.with_suffix(".json").name),
            sections.safe(report),
            sections.results(report, prices),
            sections.phases(report, pictures),
            sections.compiled(report),
            sections.lossy(report),
            sections.memory(report, pictures),
            sections.costs(report, prices),
            sections.quality(report),
            sections.clips(report),
            sections.loads(report),
            sections.cold_starts(report),
            sections.estimates(report, prices),
            sections.how(report),
        ]
        path.write_text("\n".join(line for part in parts for line in part).rstrip() + "\n", encoding="utf-8")


def table_of(report: BenchmarkReport) -> tuple[str, list[str], list[list[str]]]:
    """The table of presets for a terminal, the safe one marked: title, columns (`#` marks numbers), rows."""
    rows = [[*_short(row), "safe preset" if row.preset.name == report.safe_preset else ""] for row in report.rows]
    return measured_on(report.environment), [*_COLUMNS, ""], rows


def _short(row: BenchmarkRow) -> list[str]:
    result = f"{row.status}: {row.reason}" if row.reason and not row.worked else result_of(row)
    figures = [NONE] * 4
    if row.worked:
        peak = number(row.memory.allocated_gib) if row.memory else NONE
        figures = [number(row.seconds_p50), spread_of(row), number(row.step_seconds), peak]
    return [row.preset.name, clip_of(row.preset), result, *figures]
