"""Reports that earlier versions of wanstore wrote, with the names of today."""

from __future__ import annotations

from typing import Any


def upgraded_report(document: dict[str, Any]) -> dict[str, Any]:
    """The report with today's names; what is malformed stays so."""
    rows, environment = document.get("rows"), document.get("environment")
    if isinstance(rows, list):
        document["rows"] = [upgraded_row(row) if isinstance(row, dict) else row for row in rows]
    if isinstance(environment, dict) and environment.get("memory") == "streamed":
        document["environment"] = {**environment, "memory": "offload"}
    return document


def upgraded_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON with today's names, whatever version of wanstore wrote it."""
    row = dict(row)
    if isinstance(row.get("preset"), dict):
        row["preset"] = {"negative_prompt": "", **row["preset"]}  # clips had none
    if "stage_peaks_gib" in row:
        row["phase_peaks_gib"] = row.pop("stage_peaks_gib")
    for key in ("predicted_gib", "phase_peaks_gib"):
        peaks = row.get(key)
        if isinstance(peaks, dict):
            row[key] = {"text_encoding" if phase == "text" else phase: gib for phase, gib in peaks.items()}
    if isinstance(row.get("memory_plan"), str):
        row["memory_plan"] = row["memory_plan"].replace("streamed", "offloaded")
    return row
