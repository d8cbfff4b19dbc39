"""`wanstore bench`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from wanstore.cli._faults import fail
from wanstore.cli._options import (
    FilledPath,
    FiniteRange,
    changed,
    clip_options,
    compile_option,
    device_option,
    dtype_option,
    json_option,
    memory_option,
    named_presets,
    open_store_at,
    presets_option,
    store_option,
    stored_names,
)
from wanstore.errors import NotSupportedError, WanstoreError, without_secrets

if TYPE_CHECKING:
    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.interfaces import Progress, Report, WeightStore
    from wanstore.presets import Preset

_OWN = "process"
"""wanstore's own benchmarker."""


@click.command()
@click.argument("name", shell_complete=stored_names)
@store_option
@click.option("--benchmarker", default=_OWN, show_default=True,
              help="process, each preset in its own, or the name of an installed benchmarker.")  # fmt: skip
@presets_option
@clip_options
@click.option("--steps", multiple=True, metavar="N|PRESET=N",
              help="Run only N denoising steps, and extrapolate the rest.  [default: the preset's]")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Clips of each preset that count.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True,
              help="Clips of two steps before them that do not.")  # fmt: skip
@click.option("--memory-gib", type=FiniteRange(0, min_open=True), help="Limit torch to this much of the GPU.")
@click.option(
    "--attention", help="An attention backend of diffusers, or auto for the fastest.  [default: the manifest's]"
)
@compile_option
@dtype_option
@memory_option
@click.option("--timeout", "timeout_seconds", type=FiniteRange(0, min_open=True),
              help="Stop a preset after this many seconds, loading included.")  # fmt: skip
@device_option
@click.option("--out", type=FilledPath(path_type=Path, dir_okay=False), default="docs/benchmarks.md",
              show_default=True, help="The page; its JSON and pictures are written beside it.")  # fmt: skip
@click.option("--compare", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="The JSON of an earlier run to compare with.")  # fmt: skip
@click.option("--keep-clips", type=FilledPath(path_type=Path, file_okay=False),
              help="Save each preset's last clip in this folder.")  # fmt: skip
@click.option("--reference", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder of clips kept by an earlier run to compare with.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Measure again what a stopped run has measured.")
@click.option("--replace-page", is_flag=True,
              help="Let the page take the place of another device's, or of other weights'.")  # fmt: skip
@json_option
def bench(name: str, store_url: str, benchmarker: str, wanted: str | None, presets_file: Path | None,
          steps: Sequence[str], size: str | None, frames: int | None, guidance_scale: float | None,
          flow_shift: float | None, negative_prompt: str | None, out: Path, compare: Path | None, as_json: bool,
          **how: Any) -> None:  # fmt: skip
    """Measure what each preset costs, and which one is safe.

    Prints a table, and writes a page with charts and the same figures as JSON. Each preset runs in its own process.
    A preset that fails is a row of the table; the exit status is 1 if all fail. A stopped run resumes when you run
    the same command again.

    \b
    Example:
      wanstore bench wan2.1-fp16 --store ./models --presets 480p/3s --steps 10
    """
    from wanstore.api.measuring import bench as run_bench
    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.display._progress import shown
    from wanstore.recipes import model_in

    if out.suffix == ".json":
        raise click.BadParameter(f"{str(out)!r} is where the page's JSON goes; name the page", param_hint="--out")
    if compare and benchmarker != _OWN:
        raise click.UsageError(f"--compare reads reports of the benchmarker {_OWN}")
    old = BenchmarkReport.from_json(compare.read_bytes(), str(compare)) if compare else None
    changes: dict[str, Any] = {"frames": frames, "guidance_scale": guidance_scale, "flow_shift": flow_shift}
    changes["negative_prompt"] = negative_prompt

    def chosen(model: str = "") -> list[Preset]:
        return [changed(preset, size=size, **changes) for preset in named_presets(wanted, presets_file, model)]

    how["steps"] = _steps(steps, chosen())  # what is wrong about them is told before anything is fetched
    store = open_store_at(store_url)
    report: Report
    with shown(not as_json, store) as progress:
        presets = chosen(model_in(store.local_path(name)))
        if benchmarker == _OWN:
            command = without_secrets(shlex.join(["wanstore", *sys.argv[1:]]))
            report = run_bench(
                name, store=store, presets=presets, report=out, command=command, progress=progress, **how
            )
        else:
            report = _run_installed(benchmarker, name, store, presets, out, how, progress)
    document = _document_of(report, benchmarker)
    if document["rows"]:
        _write(report, document, old, out, as_json)
    if len(document["rows"]) < len(presets):
        kept = f"{len(document['rows'])} of {len(presets)} presets are measured and kept"
        fault = WanstoreError(f"Interrupted: {kept}", "Run the same command again to measure the rest")
        if not document["rows"]:
            raise fault  # nothing was printed
        fail(fault)
    if not any(row["status"] == "ok" for row in document["rows"]):
        fail(WanstoreError("No preset worked", f"See each preset's reason in {out}"))


def _run_installed(
    benchmarker: str,
    name: str,
    store: WeightStore,
    presets: Sequence[Preset],
    out: Path,
    how: Mapping[str, Any],
    progress: Progress,
) -> Report:
    """The report of a benchmarker that another package registers, made with the options that were given."""
    from wanstore._installed import make_backend
    from wanstore.benchmarking._outputs import check_page, check_replaces
    from wanstore.interfaces import Benchmarker

    context = click.get_current_context()
    given = {key: how[key] for key in how if context.get_parameter_source(key) is ParameterSource.COMMANDLINE}
    check_page(out)
    if not given.pop("replace_page", False):
        check_replaces(out, None)
    folder = store.local_path(name)
    own = {_OWN: "wanstore.benchmarking.run:ProcessBenchmarker"}
    found = make_backend(Benchmarker, "benchmarker", benchmarker, own, lambda make: make(folder, **given))
    return found.run(presets, progress=progress)


def _document_of(report: Report, benchmarker: str) -> dict[str, Any]:
    """The report's JSON. Raises `NotSupportedError` if it lacks what every report has."""
    try:
        document: dict[str, Any] = json.loads(report.to_json())
        for row in document["rows"]:
            row["preset"]["name"], row["status"]
    except (ValueError, TypeError, KeyError) as error:
        raise NotSupportedError(
            f"The report of the benchmarker {benchmarker!r} lacks its rows, or a row its preset's name and status"
            f" ({type(error).__name__}: {error})",
            "Report it to its authors",
        ) from error
    return document


def _steps(options: Sequence[str], presets: Sequence[Preset]) -> Mapping[str, int]:
    """`--steps` as steps by preset: a bare number is for all that are not named."""
    found: dict[str, int] = {}
    for option in sorted(options, key=lambda text: "=" in text):
        name, _, number = option.rpartition("=")
        if not (number.isdecimal() and int(number)):
            raise click.BadParameter(f"{option!r} is neither N nor PRESET=N", param_hint="--steps")
        if name and name not in {preset.name for preset in presets}:
            raise click.BadParameter(f"{name!r} is not among the presets", param_hint="--steps")
        found |= dict.fromkeys([name] if name else [preset.name for preset in presets], int(number))
    return found


def _write(report: Report, document: dict[str, Any], old: BenchmarkReport | None, out: Path, as_json: bool) -> None:
    """Write what there is to write, and print it. Only wanstore's own reports have a page, and can be compared."""
    from wanstore.benchmarking.compare import compare
    from wanstore.benchmarking.page import table_of, write
    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.cli._terminal import show, text_table

    compared = None
    if isinstance(report, BenchmarkReport):
        write(report, out)
        compared = compare(old, report) if old else None
        written = f"{out} and {out.with_suffix('.json')} are written"
        title, columns, rows = table_of(report)
    else:
        out.with_suffix(".json").write_text(report.to_json())
        written = f"{out.with_suffix('.json')} is written"
        title, columns, rows = _table_of_any(document)
    if as_json:
        # The report as it is: its schema is its own.
        click.echo(json.dumps(document | ({"comparison": compared.to_json()} if compared else {}), indent=2))
        return
    show(text_table(columns, rows, title=title))
    for line in compared.lines() if compared else ():
        click.echo(line)
    click.echo(written)


def _table_of_any(document: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """The table of a report of any benchmarker: each row's result, and whatever single figures it has."""
    rows = document["rows"]
    plain = {key for row in rows for key, value in row.items() if isinstance(value, int | float | str)}
    figures = [key for key in dict.fromkeys(key for row in rows for key in row) if key in plain - {"status", "reason"}]
    cells = [
        [
            row["preset"]["name"],
            f"{row['status']}: {row['reason']}" if row.get("reason") else row["status"],
            *(_cell(row.get(figure)) for figure in figures),
            "safe preset" if row["preset"]["name"] == document.get("safe_preset") else "",
        ]
        for row in rows
    ]
    return "", ["preset", "result", *(f"#{figure}" for figure in figures), ""], cells


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if isinstance(value, int | str) else "–"
