"""The tables that loading.py prints of what it found."""

from __future__ import annotations

from statistics import median
from typing import Any

from loaders import FILE_WAYS, PIPELINE_WAYS

OURS = "wanstore.load"
Row = dict[str, Any]


def tables(found: dict[str, Any]) -> str:
    parts = [
        f"{found['size_bytes'] / 1e9:.2f} GB of float16, device {found['device']}",
        _ceilings(found),
        "### Files to device: every tensor is there\n" + _loads(found, [OURS, *FILE_WAYS], weights_only=True),
        "### Folder to pipeline: imports done\n" + _loads(found, list(PIPELINE_WAYS), weights_only=False),
        "### Process start to ready, warm\n" + _starts(found),
    ]
    return "\n\n".join(parts)


def seconds_of(row: Row, *, weights_only: bool) -> float | None:
    """What a load took: all of it, or of wanstore's the transfer of the weights alone."""
    if weights_only and "report" in row:
        return next(phase["seconds"] for phase in row["report"]["phases"] if phase["name"] == "weights")
    seconds: float | None = row.get("seconds")
    return seconds


def middle(found: dict[str, Any], way: str, state: str, *, weights_only: bool) -> float | None:
    """The median of a way's right loads; None when there is none."""
    rows = [row for row in found["loads"] if (row["way"], row["state"]) == (way, state) and not row.get("wrong")]
    seconds = [value for row in rows if (value := seconds_of(row, weights_only=weights_only)) is not None]
    return median(seconds) if seconds else None


def _ceilings(found: dict[str, Any]) -> str:
    lines = ["| ceiling | GB/s | s for all of it |", "| --- | --- | --- |"]
    for name, rate in found["ceilings"].items():
        if isinstance(rate, float):
            lines.append(f"| {name} | {rate:.1f} | {found['size_bytes'] / rate / 1e9:.2f} |")
        else:
            lines.append(f"| {name} | {rate} | |")
    return "\n".join(lines)


def _loads(found: dict[str, Any], ways: list[str], *, weights_only: bool) -> str:
    states = [state for state in ("warm", "cold") if any(row["state"] == state for row in found["loads"])]
    heads = [f"{state} s | GB/s | times wanstore" for state in states]
    lines = [f"| way | {' | '.join(heads)} | host memory GB | of the machine GB | device memory GB |"]
    lines.append("| --- " * (4 + 3 * len(states)) + "|")
    base = {state: middle(found, OURS, state, weights_only=weights_only) for state in states}
    for way in ways:
        rows = [row for row in found["loads"] if row["way"] == way]
        if not rows:
            continue
        cells = []
        for state in states:
            seconds = middle(found, way, state, weights_only=weights_only)
            cells.append(_cells(seconds, base[state], found["size_bytes"]) if seconds else f"{_why(rows, state)} | |")
        name = f"{way}, weights" if weights_only and way == OURS else way
        memory = [_most(rows, key) for key in ("host_bytes", "machine_bytes", "device_bytes")]
        lines.append(f"| {name} | {' | '.join([*cells, *memory])} |")
    return "\n".join(lines)


def _cells(seconds: float, base: float | None, size_bytes: int) -> str:
    ratio = f"{seconds / base:.2f}" if base else ""
    return f"{seconds:.2f} | {size_bytes / seconds / 1e9:.1f} | {ratio}"


def _why(rows: list[Row], state: str) -> str:
    reasons = [row.get("error") or row.get("wrong") for row in rows if row["state"] == state]
    return str(reasons[0]).replace("|", "/") if reasons else "not run"


def _most(rows: list[Row], key: str) -> str:
    sizes = [row[key] for row in rows if key in row and row["state"] == "warm"]
    return f"{max(sizes) / 1e9:.2f}" if sizes else ""


def _starts(found: dict[str, Any]) -> str:
    lines = ["| way | ready s | times wanstore | imports alone s |", "| --- | --- | --- | --- |"]
    ready = {way: start(found, way, "ready") for way in PIPELINE_WAYS}
    for way, value in ready.items():
        base = ready[OURS]
        ratio = f"{value / base:.2f}" if isinstance(value, float) and isinstance(base, float) else ""
        cells = [_told(value), ratio, _told(start(found, way, "imports"))]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def start(found: dict[str, Any], way: str, what: str) -> float | str:
    """The median of a way's starts; why there is none, if there is none."""
    rows = [row for row in found["starts"] if (row["way"], row["what"]) == (way, what)]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    return median(seconds) if seconds else next((row["error"] for row in rows), "not run")


def _told(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else value
