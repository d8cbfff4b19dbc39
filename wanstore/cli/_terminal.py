"""Terminal output: tables and lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from wanstore.cli._json import compiled_json
from wanstore.display._text import escaped, human_bytes
from wanstore.errors import without_secrets
from wanstore.manifest import Manifest

if TYPE_CHECKING:
    from rich.table import Table

    from wanstore.api._setup import SetupPlan
    from wanstore.stores.cache import CachedPipeline

_RATES = (50_000_000, 200_000_000, 1_000_000_000)
"""Bytes a second that a download's time is told for."""


def show(*tables: Table) -> None:
    """Print tables to stdout, as wide as they need when that is no terminal."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables:
        console.print(table)


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Table:
    """A table of `rows`; columns that begin with `#` are numbers, set to the right.

    Cells show their text as it is, brackets and colons included.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE, title=Text(escaped(title), style="table.title") if title else None, title_justify="left"
    )
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    return table


def plan_lines(plan: SetupPlan) -> list[str]:
    """What `wanstore setup --dry-run` shows."""
    source = f"{plan.source.location} ({plan.source.kind}) at {plan.source.commit[:12]}"
    if plan.todo == "nothing":
        return [f"{plan.name} is already there, made by the same recipe from {source}: nothing to do"]
    done = "would replace what is there, made" if plan.todo == "replace" else "would be made"
    times = ", ".join(f"{plan.fetched_bytes / rate:.0f} s at {human_bytes(rate)}/s" for rate in _RATES)
    room = {None: "room is not known", True: "fits", False: "does NOT fit"}[plan.fits]
    free = "" if plan.free_bytes is None else f", {human_bytes(plan.free_bytes)} are free"
    return [
        f"{plan.name} {done} from {source}" + (f", {plan.model}" if plan.model else ""),
        f"downloads {human_bytes(plan.fetched_bytes)}: {times}" if plan.fetched_bytes else "downloads nothing",
        f"stores {human_bytes(plan.stored_bytes)} in {len(plan.files)} weight files",
        f"needs {human_bytes(plan.peak_bytes)} of disk at most{free}: {room}",
    ]


def list_table(manifests: Iterable[Manifest]) -> Table:
    """What `wanstore list` shows."""
    rows = (
        [one.name, one.source.location, one.source.commit[:12], human_bytes(one.size_bytes), one.created_at]
        for one in manifests
    )
    return text_table(["name", "source", "commit", "#size", "made at"], rows)


def cached_table(found: Iterable[CachedPipeline]) -> Table:
    """What `wanstore cache list` shows."""
    rows = (
        [
            one.name,
            without_secrets(one.store or "not known"),
            one.state,
            human_bytes(one.size_bytes),
            one.last_used.isoformat(timespec="seconds"),
            "yes" if one.in_use else "no",
        ]
        for one in found
    )
    return text_table(["name", "from", "state", "#size", "last used", "in use"], rows)


def compiled_tables(compiled: Sequence[Manifest]) -> list[Table]:
    """What `wanstore show` shows of compiled functions: each folder, for what, and for which presets."""
    rows = [
        [
            one["name"],
            ", ".join(function["preset"] or f"{function['shape']} tokens" for function in one["functions"]),
            ", ".join(f"{key} {value}" for key, value in one["made_for"].items()),
        ]
        for one in map(compiled_json, compiled)
    ]
    return [text_table(["folder", "presets", "made for"], rows, title="compiled functions")] if rows else []


def tensors_table(component: str, tensors: list[dict[str, Any]]) -> Table:
    """What `wanstore show --tensors` adds: a row for each tensor of a component."""
    rows = (
        [
            tensor["name"],
            tensor["source_dtype"],
            "×".join(map(str, tensor["shape"])),
            f"{tensor['max_abs']:.4g}",
            str(tensor["overflows"]),
            str(tensor["flushed_to_zero"]),
            str(tensor["subnormals"]),
            f"{tensor['max_error']:.2e}",
            f"{tensor['rms_error']:.2e}",
        ]
        for tensor in tensors
    )
    head = [
        "tensor", "from", "shape", "#largest value", "#overflows", "#to zero", "#subnormal", "#max error", "#rms error",
    ]  # fmt: skip
    return text_table(head, rows, title=component)
