"""`wanstore report`."""

from __future__ import annotations

from pathlib import Path

import click

from wanstore.cli._json import print_json
from wanstore.cli._options import FilledPath, json_option, store_option, stored_names

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("report")
@click.argument("name", shell_complete=stored_names)
@store_option
@click.option("--out", type=FilledPath(path_type=Path, dir_okay=False), help="The page.  [default: NAME-report.html]")
@click.option("--load-report", type=_FILE, help="Show the phases of this load: what generate --json printed.")
@click.option("--measure-load", is_flag=True, help="Load the pipeline on this machine, and show the phases of that.")
@click.option("--benchmarks", type=_FILE, help="Show these benchmarks: the JSON beside the page of wanstore bench.")
@json_option
def report_command(name: str, store_url: str, out: Path | None, load_report: Path | None, measure_load: bool,
                   benchmarks: Path | None, as_json: bool) -> None:  # fmt: skip
    """Write a page about a pipeline: its manifest, sizes, and the conversion's error by layer.

    One HTML file that fetches nothing and runs nothing. An existing file is replaced.

    \b
    Example:
      wanstore report wan2.1-fp16 --store ./models --measure-load --benchmarks docs/benchmarks.json
    """
    from wanstore.api.serving import load
    from wanstore.api.storing import report
    from wanstore.benchmarking.report import BenchmarkReport
    from wanstore.loading import LoadReport

    if load_report and measure_load:
        raise click.UsageError("--load-report and --measure-load exclude each other")
    measured = BenchmarkReport.from_json(benchmarks.read_bytes(), str(benchmarks)) if benchmarks else None
    loaded = LoadReport.from_json(load_report.read_bytes(), str(load_report)) if load_report else None
    if measure_load:
        loaded = load(name, store=store_url, progress=not as_json).load_report
    page = report(name, out, store=store_url, load_report=loaded, benchmarks=measured)
    if as_json:
        print_json({"page": str(page)})
    else:
        click.echo(f"{page} is written")
