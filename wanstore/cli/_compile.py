"""`wanstore compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wanstore.cli._faults import fail
from wanstore.cli._json import print_json
from wanstore.cli._options import (
    changed,
    device_option,
    dtype_option,
    json_option,
    memory_option,
    named_presets,
    presets_option,
    size_options,
    store_option,
    stored_names,
)
from wanstore.errors import WanstoreError, without_secrets


@click.command("compile")
@click.argument("name", shell_complete=stored_names)
@store_option
@presets_option
@size_options
@device_option
@dtype_option
@memory_option
@click.option(
    "--attention", metavar="BACKEND", help="What clips will use, or auto.  [default: the pipeline's, or native]"
)
@click.option("--replace", is_flag=True, help="Make again what is there.")
@json_option
def compile_command(name: str, store_url: str, wanted: str | None, presets_file: Path | None, size: str | None,
                    frames: int | None, as_json: bool, **how: Any) -> None:  # fmt: skip
    """Compile a pipeline's transformer blocks for this GPU, and keep them in its store.

    Clips of the same sizes are made quicker then, by `load(compile="cached")`, `generate --compile cached` and the
    endpoint, on a GPU of the same name with the same versions. Most of the time, about a minute and a half, goes into
    loading the pipeline twice. Needs a C compiler. With --size or --frames, name one preset.

    \b
    Example:
      wanstore compile wan2.1-fp16 --store ./models --presets 480p/3s,480p/5s
    """
    from wanstore._formats._json import to_json
    from wanstore.api.serving import compile_blocks

    presets = [changed(preset, size=size, frames=frames) for preset in named_presets(wanted, presets_file, "")]
    report = compile_blocks(name, store=store_url, presets=presets, progress=not as_json, **how)
    if as_json:
        print_json(to_json(report))
    else:
        for preset in report.presets:
            click.echo(str(preset))
        if any(preset.status == "made" for preset in report.presets):
            click.echo(f"{report.folder}: sealed in {without_secrets(store_url)}")
    if all(preset.status == "failed" for preset in report.presets):
        fail(WanstoreError("Nothing could be compiled", "Clips are made without, as before"))
