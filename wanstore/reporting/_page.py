"""The page, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanstore._files import draft_of
from wanstore._formats._json import from_json
from wanstore.display._manifest import PlainTable, manifest_tables
from wanstore.display._text import human_bytes
from wanstore.errors import DamagedError
from wanstore.manifest import Manifest, TensorRecord
from wanstore.reporting._charts import Bar, Part, chart
from wanstore.reporting._html import Html, document, element, table
from wanstore.reporting._layers import Layer, layers

if TYPE_CHECKING:
    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.benchmarking.rows import BenchmarkRow
    from wanstore.loading import LoadReport

_PHASE_COLORS = {"text encoding": "four", "denoising": "two", "decoding": "one", "writing": "three", "rest": "rest"}


def write_report(
    manifest: Manifest,
    records: Mapping[str, Any],
    out: Path,
    *,
    load: LoadReport | None = None,
    benchmarks: BenchmarkReport | None = None,
) -> None:
    """Write the page about a pipeline to `out`. An existing file is replaced by a whole one, or stays.

    `records` are its tensors', as `read_tensor_records` gives them. Raises `DamagedError` if they hold figures that are
    none, and `WanstoreError` if `out` cannot be written.
    """
    tensors = from_json(records, dict[str, list[TensorRecord]])
    try:
        text = _page(manifest, tensors, load, benchmarks)
    except (ArithmeticError, ValueError) as error:  # a file may hold any number
        raise DamagedError(
            f"Figures of {manifest.name}, its load or its benchmarks cannot be shown ({error})",
            "Save the load report and the benchmarks again, or leave them out",
        ) from error
    with draft_of(out) as draft:
        draft.write_text(text, encoding="utf-8")
        draft.replace(out.resolve())


def _page(
    manifest: Manifest,
    records: Mapping[str, Sequence[TensorRecord]],
    load: LoadReport | None,
    benchmarks: BenchmarkReport | None,
) -> str:
    facts, components, files = manifest_tables(manifest)
    sections = {
        "Manifest": [table(facts)],
        "Size": _sizes(manifest),
        "Conversion": [table(components), *_errors(records)],
        "Load": _load(load) if load else [],
        "Benchmarks": _benchmarks(benchmarks) if benchmarks else [],
        "Files": [table(files)],
    }
    shown = {title: parts for title, parts in sections.items() if parts}
    links = element("nav", *(element("a", title, href=f"#{title.lower()}") for title in shown), aria_label="Sections")
    body = [element("section", element("h2", title, id=title.lower()), *parts) for title, parts in shown.items()]
    return document(f"{manifest.name}: wanstore report", [element("h1", manifest.name), links, element("main", *body)])


def _sizes(manifest: Manifest) -> list[Html]:
    """What each component takes, in the source and as stored, and what the small files do."""
    bars = []
    for name, record in manifest.conversion.components.items():
        bars += [
            Bar(name, f"{human_bytes(record.source_bytes)} in the source", [Part("rest", 0, record.source_bytes)]),
            Bar("", f"{human_bytes(record.stored_bytes)} stored", [Part("one", 0, record.stored_bytes)]),
        ]
    other = manifest.size_bytes - sum(record.stored_bytes for record in manifest.conversion.components.values())
    bars.append(Bar("other files", human_bytes(other), [Part("one", 0, other)]))
    return [chart("size by component", bars)]


def _errors(records: Mapping[str, Sequence[TensorRecord]]) -> list[Html]:
    parts = []
    for component, tensors in records.items():
        bars = [Bar(layer.name, _figure(layer), [Part("one", 0, layer.relative_error)]) for layer in layers(tensors)]
        parts += [element("h3", f"Error by layer: {component}"), chart(f"error by layer of {component}", bars)]
    if parts:
        told = "Root mean square of what the conversion changed, over that of the source's values."
        parts.insert(0, element("p", told, class_="soft"))
    return parts


def _figure(layer: Layer) -> str:
    notes = [
        *([f"{layer.overflows:,} overflows"] if layer.overflows else []),
        *([f"{layer.flushed_to_zero:,} to zero"] if layer.flushed_to_zero else []),
    ]
    return ", ".join([f"{layer.relative_error:.2e}", *notes])


def _load(report: LoadReport) -> list[Html]:
    """Phases as they lay in time: those that overlap ran at once."""
    bars = []
    for phase in report.phases:
        rate = f", {human_bytes(int(phase.size_bytes / phase.seconds))}/s" if phase.size_bytes and phase.seconds else ""
        color = "two" if phase.name == "weights" else "one"
        part = Part(color, phase.began_seconds, phase.began_seconds + phase.seconds)
        bars.append(Bar(phase.name, f"{phase.seconds:.2f} s{rate}", [part]))
    bars.append(Bar("all of it", f"{report.seconds:.2f} s", [Part("rest", 0, report.seconds)]))
    told = f"{human_bytes(report.size_bytes)} on {report.device}, bound by {report.bound_by}"
    return [element("p", "; ".join([told, *report.remarks])), chart("phases of the load", bars)]


def _benchmarks(report: BenchmarkReport) -> list[Html]:
    """The table of presets, the safe one, time by phase, and memory."""
    from wanstore.benchmarking.page import table_of
    from wanstore.benchmarking.safe import MEMORY_SHARE

    measured, columns, rows = table_of(report)
    cap = report.environment.memory_cap_gib
    limit = MEMORY_SHARE * (report.environment.memory_gib if cap is None else cap)
    return [
        element("p", f"{measured} Weights: {report.environment.weights or 'not told'}"),
        table(PlainTable("presets", columns, rows)),
        element("h3", f"Safe preset: {report.safe_preset or 'none'}"),
        element("ul", *(element("li", reason) for reason in report.safe.reasons)),
        element("h3", "Seconds a clip"),
        chart("seconds a clip", [_time_bar(row) for row in report.rows], key=_by_color(_PHASE_COLORS)),
        element("h3", "Peak memory"),
        chart(
            "peak memory",
            [_memory_bar(row) for row in report.rows],
            key={"one": "handed out by torch", "rest": "in use on the device", "limit": f"safe up to {limit:.1f} GiB"},
            limits=[limit],
        ),
    ]


def _by_color(colors: Mapping[str, str]) -> dict[str, str]:
    return {color: name for name, color in colors.items()}


def _time_bar(row: BenchmarkRow) -> Bar:
    from wanstore.benchmarking.rows import phase_seconds

    if not row.worked:
        return Bar(row.preset.name, row.status, [])
    parts: list[Part] = []
    for phase, seconds in phase_seconds(row).items():
        start = parts[-1].end if parts else 0.0
        parts.append(Part(_PHASE_COLORS[phase], start, start + seconds))
    return Bar(row.preset.name, f"{'≈ ' if row.extrapolated else ''}{row.seconds_p50:.1f} s", parts)


def _memory_bar(row: BenchmarkRow) -> Bar:
    if row.memory is None:
        return Bar(row.preset.name, row.status, [])
    parts: Sequence[Part] = (
        Part("rest", 0, row.memory.device_gib or 0.0),
        Part("one", 0, row.memory.allocated_gib),
    )
    return Bar(row.preset.name, f"{row.memory.allocated_gib:.1f} GiB", parts)
