"""The `wanstore` command. Exit status: 0 done; 1 it failed, with one line that says why; 2 wrong usage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import wanstore
from wanstore.cli._bench import bench
from wanstore.cli._cache import cache_commands
from wanstore.cli._compile import compile_command
from wanstore.cli._faults import Commands, one_line, plain_memory_errors
from wanstore.cli._json import list_json, pipeline_json, print_json, show_json, verify_json
from wanstore.cli._options import (
    FilledPath,
    FiniteRange,
    changed,
    chosen_presets,
    clip_options,
    compile_option,
    device_option,
    dtype_option,
    filled,
    folders,
    json_option,
    key_values,
    memory_option,
    open_store_at,
    preset_names,
    preset_option,
    store_option,
    stored_names,
)
from wanstore.cli._report import report_command
from wanstore.display._text import escaped, human_bytes
from wanstore.errors import NotFoundError, without_secrets

if TYPE_CHECKING:
    from wanstore.presets import Preset


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(wanstore.__version__)
def main() -> None:
    """Get Wan 2.1 weights from their publisher onto a GPU.

    \b
    Begin with:
      wanstore setup Wan-AI/Wan2.1-T2V-1.3B-Diffusers --store ./models
      wanstore generate wan2.1-fp16 --store ./models --prompt "a cat on a skateboard" --out cat.mp4

    \b
    Environment variables:
      WANSTORE_STORE           the store, if --store is left out
      WANSTORE_CACHE           where downloads from remote stores are kept
      WANSTORE_CACHE_GIB       how much of it they may take
      WANSTORE_MODAL_MOUNTS    where Modal Volumes are mounted, as VOLUME=/folder
      WANSTORE_PLAIN_IMPORTS   1 turns deferred imports off
    """


@main.command()
@click.argument("source", callback=filled, shell_complete=folders)
@store_option
@click.option("--name", default="wan2.1-fp16", show_default=True, help="The pipeline's name in the store.")
@click.option("--revision", help="Branch, tag or commit of a Hub repo.  [default: main]")
@click.option("--replace", is_flag=True, help="Replace a stored pipeline of that name in one step.")
@click.option("--converter", "converter_name", default="fp16", show_default=True,
              help="fp16, or the name of an installed converter.")  # fmt: skip
@click.option("--converter-option", "converter_options", multiple=True, metavar="NAME=VALUE", callback=key_values,
              help="An option of the converter, such as overflow=clamp of fp16. May be repeated.")  # fmt: skip
@click.option("--keep-source", type=FilledPath(path_type=Path, file_okay=False),
              help="Keep the downloaded source in this folder.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 64),
              help="How many parts of a file come from the Hub at once.  [default: 8]")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--dry-run", is_flag=True, help="Only say what would be downloaded and stored, and whether it fits.")
@json_option
def setup(source: str, store_url: str, name: str, as_json: bool, converter_name: str,
          converter_options: dict[str, str], keep_source: Path | None, connections: int | None, quiet: bool,
          dry_run: bool, **options: Any) -> None:  # fmt: skip
    """Download SOURCE, convert it to float16 and store it.

    SOURCE is a Hub repo in the Diffusers or the original layout of Wan 2.1, or such a folder. An interrupted run
    resumes when you run the same command again. A second run of the same recipe does nothing.

    \b
    Example:
      wanstore setup Wan-AI/Wan2.1-T2V-1.3B-Diffusers --store ./models
    """
    from wanstore._formats._json import to_json
    from wanstore.api._setup import make_converter
    from wanstore.api.storing import plan_setup
    from wanstore.api.storing import setup as run_setup
    from wanstore.cli._terminal import plan_lines

    converter = make_converter(converter_name, converter_options)
    if dry_run:
        plan = plan_setup(source, store_url, name=name, converter=converter, **options)
        if as_json:
            print_json({**to_json(plan), "fits": plan.fits})
        else:
            click.echo("\n".join(plan_lines(plan)))
        return
    manifest = run_setup(
        source,
        store_url,
        name=name,
        converter=converter,
        keep_source=keep_source,
        connections=connections,
        progress=not (quiet or as_json),
        **options,
    )
    if as_json:
        print_json(pipeline_json(manifest))
    else:
        size, place = human_bytes(manifest.size_bytes), without_secrets(store_url)
        click.echo(f"{name}: {len(manifest.files)} files, {size}, sealed in {place}")


@main.command("list")
@store_option
@json_option
def list_pipelines(store_url: str, as_json: bool) -> None:
    """List the pipelines in a store.

    Those that cannot be read are shown with the reason, and the exit status is 0 all the same. Compiled functions are
    shown by `wanstore show NAME`, and here only if their pipeline is gone.
    """
    from wanstore.building._artifacts import compiled_of
    from wanstore.cli._terminal import list_table
    from wanstore.cli._terminal import show as show_tables

    listing = open_store_at(store_url).list()
    beside = {one.name for pipeline in listing.pipelines for one in compiled_of(pipeline.name, listing.pipelines)}
    pipelines = [one for one in listing.pipelines if one.name not in beside]
    for one in listing.unreadable:
        click.echo(one_line(f"wanstore: {one.name} cannot be read: {one.reason}."), err=True)
    if as_json:
        print_json(list_json(pipelines, listing.unreadable))
    elif pipelines:
        show_tables(list_table(pipelines))
    elif not listing.unreadable:
        place = without_secrets(store_url)
        click.echo(f"Nothing is stored in {place}. Add one with: wanstore setup SOURCE --store {place}", err=True)


@main.command()
@click.argument("name", shell_complete=stored_names)
@store_option
@click.option("--tensors", is_flag=True, help="Also show what the conversion did to each tensor.")
@json_option
def show(name: str, store_url: str, tensors: bool, as_json: bool) -> None:
    """Show where a pipeline comes from, how it was converted, its files, and what it has compiled functions for."""
    from wanstore.building._artifacts import compiled_of
    from wanstore.stores._folder import tensor_records

    store = open_store_at(store_url)
    manifest = store.manifest(name)
    records = tensor_records(store, manifest) if tensors else {}
    compiled = compiled_of(name, store.list().pipelines)
    if as_json:
        print_json({**show_json(manifest, compiled), **({"tensors": records} if tensors else {})})
        return
    from wanstore.cli._terminal import compiled_tables, tensors_table, text_table
    from wanstore.cli._terminal import show as show_tables
    from wanstore.display._manifest import manifest_tables

    show_tables(
        *(text_table(one.columns, one.rows, title=one.title) for one in manifest_tables(manifest)),
        *compiled_tables(compiled),
        *(tensors_table(component, rows) for component, rows in records.items()),
    )


@main.command()
@click.argument("name", shell_complete=stored_names)
@store_option
@json_option
def verify(name: str, store_url: str, as_json: bool) -> None:
    """Hash a pipeline's files again.

    Names each file that is damaged, missing or extra; the exit status is 1 if there is one.
    """
    from wanstore.api.storing import verify as run_verify
    from wanstore.building._artifacts import is_compiled

    store = open_store_at(store_url)
    report = run_verify(name, store=store, progress=not as_json)
    next_step = ""
    if not report.ok:
        again = "wanstore compile" if is_compiled(store.manifest(name)) else "setup or copy"
        next_step = f"run {again} again with --replace"
    if as_json:
        print_json(verify_json(report, next_step))
    else:
        rate = human_bytes(int(report.size_bytes / max(report.seconds, 1e-9)))
        click.echo(f"{name}: {report.files} files, {human_bytes(report.size_bytes)} hashed at {rate}/s")
        for kind in ("damaged", "missing", "extra"):
            for path in getattr(report, kind):
                click.echo(escaped(f"{kind}: {path}"))
        click.echo("whole" if report.ok else f"NOT whole: {next_step}")
    sys.exit(0 if report.ok else 1)


@main.command()
@click.argument("name", shell_complete=stored_names)
@click.option("--from", "source", required=True, callback=filled, shell_complete=folders, help="The store that has it.")
@click.option("--to", "target", required=True, callback=filled, shell_complete=folders, help="The store that gets it.")
@click.option("--replace", is_flag=True, help="Replace another pipeline of that name in one step.")
@json_option
def copy(name: str, source: str, target: str, replace: bool, as_json: bool) -> None:
    """Copy a pipeline to another store, every byte compared with its hash.

    An interrupted run resumes when you run the same command again. If the same pipeline is there, nothing is done.

    \b
    Example:
      wanstore copy wan2.1-fp16 --from modal://anime-models --to ./models
    """
    from wanstore.api.storing import copy as run_copy

    manifest = run_copy(name, source, target, replace=replace, progress=not as_json)
    if as_json:
        print_json(pipeline_json(manifest))
    else:
        size, place = human_bytes(manifest.size_bytes), without_secrets(target)
        click.echo(f"{name}: {len(manifest.files)} files, {size}, in {place}")


@main.command()
@click.argument("name", shell_complete=stored_names)
@store_option
@json_option
def delete(name: str, store_url: str, as_json: bool) -> None:
    """Delete a pipeline from a store, and its compiled functions."""
    from wanstore.building._artifacts import compiled_of

    store = open_store_at(store_url)
    compiled = compiled_of(name, store.list().pipelines)
    store.delete(name)
    for one in compiled:
        store.delete(one.name)
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(f"{name}: deleted from {without_secrets(store_url)}")


@main.command()
@click.argument("name", shell_complete=stored_names)
@store_option
@click.option("--prompt", required=True, help="What the clip shows.")
@click.option("--preset", "preset_name", default="480p/3s", show_default=True, shell_complete=preset_names,
              help="Resolution and duration.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Number of denoising steps.  [default: the model's]")
@clip_options
@click.option("--seed", type=click.IntRange(-(2**63), 2**64 - 1), default=0, show_default=True,
              help="The same seed gives the same clip.")  # fmt: skip
@device_option
@dtype_option
@memory_option
@compile_option
@click.option("--verify", is_flag=True, help="Compare every file's hash with the manifest first.")
@click.option("--out", type=FilledPath(path_type=Path, dir_okay=False), default="clip.mp4", show_default=True,
              help="The video file.")  # fmt: skip
@json_option
def generate(name: str, store_url: str, prompt: str, seed: int, device: str | None, dtype: Any, memory: Any,
             compile: Any, verify: bool, out: Path, as_json: bool, preset_name: str, presets_file: Path | None,
             **changes: Any) -> None:  # fmt: skip
    """Make a clip: an mp4 at 16 frames a second.

    \b
    Example:
      wanstore generate wan2.1-fp16 --store ./models --prompt "a red fox in the snow" --preset 480p/3s
    """
    from wanstore._formats._json import to_json
    from wanstore.api.serving import load
    from wanstore.display._progress import shown
    from wanstore.generation import check_place, write_clip
    from wanstore.generation import generate as make_clip
    from wanstore.recipes import model_of

    def chosen(model: str = "") -> Preset:
        return changed(chosen_presets([preset_name], presets_file, model)[0], **changes)

    try:
        preset = chosen()  # what is wrong about it is told before anything is fetched
    except NotFoundError as error:
        raise click.BadParameter(str(error), param_hint="--preset") from error
    check_place(out)
    with plain_memory_errors(preset.clip):
        with shown(not as_json) as progress:
            pipe = load(
                name, store=store_url, device=device, dtype=dtype, memory=memory, compile=compile, verify=verify,
                progress=progress,
            )  # fmt: skip
            preset = chosen(model_of(pipe.transformer.config))
            frames = make_clip(pipe, prompt, preset, seed=seed, progress=progress)
        write_clip(frames, out)
    plan = pipe.memory_plan
    if as_json:
        report = to_json(pipe.load_report)
        print_json(
            {"clip": str(out), "frames": len(frames), "load": report, "memory_plan": str(plan) if plan else None}
        )
    else:
        click.echo(str(pipe.load_report))
        if plan:
            click.echo(f"memory: {plan}")
        click.echo(f"{out}: {len(frames)} frames of {preset.width}x{preset.height}, {len(frames) / 16:.1f} s")


main.add_command(compile_command)
main.add_command(bench)
main.add_command(report_command)
main.add_command(cache_commands)


@main.command()
@click.argument("name", required=False, shell_complete=stored_names)
@click.option("--store", "store_url", envvar="WANSTORE_STORE", callback=filled, shell_complete=folders,
              help="The store that holds NAME.")  # fmt: skip
@click.option("--folder", type=FilledPath(path_type=Path, file_okay=False, exists=True), default=".",
              help="Where to measure the disk.  [default: the current folder]")  # fmt: skip
@preset_option(help="Only show the memory plan of NAME for such a clip.")
@click.option("--memory-gib", type=FiniteRange(0, min_open=True),
              help="With --preset: for a GPU with this much free memory.  [default: this machine's]")  # fmt: skip
@dtype_option
@compile_option
@json_option
def doctor(name: str | None, store_url: str | None, folder: Path, preset: Preset | None, memory_gib: float | None,
           dtype: dict[str, str], compile: Any, as_json: bool) -> None:  # fmt: skip
    """Show what this machine can do: GPU, memory, speeds, attention backends, compiler, versions.

    With NAME, load that pipeline too and compare the load with those speeds. With --preset, load nothing: show the
    memory plan for a clip of that preset, and the peak that it predicts for each phase.
    """
    from wanstore.building._artifacts import functions_of
    from wanstore.cli._doctor import examine, lines, plan_lines, plan_memory
    from wanstore.display._progress import shown

    if name is not None and not store_url:
        raise click.UsageError("NAME needs --store, or WANSTORE_STORE")
    if not (preset and name is not None) and (preset or memory_gib or dtype):
        raise click.UsageError("--memory-gib and --dtype go with --preset, and that with NAME")
    store = None if name is None else open_store_at(str(store_url))
    with shown(not as_json, store):
        pipeline = store.local_path(str(name)) if store else None
    if preset and pipeline:
        findings = plan_memory(pipeline, preset, dtype, memory_gib)
        if findings is None:
            raise click.UsageError("torch finds no GPU here: give its memory with --memory-gib")
    else:
        functions = functions_of(store, str(name)) if store and compile != "off" else ()
        findings = examine(folder, pipeline, compile, functions)
    if as_json:
        print_json(findings)
        return
    for topic, text in (plan_lines if preset else lines)(findings).items():
        click.echo(f"{topic:>10}  {text}")


@main.command()
@click.option("--folder", type=FilledPath(path_type=Path, file_okay=False), default="wanstore-demo",
              show_default=True, help="Where the store and the clip are written.")  # fmt: skip
@json_option
def demo(folder: Path, as_json: bool) -> None:
    """Try everything on a tiny Wan 2.1 with random weights.

    Takes about a minute, on a CPU and without a network.
    """
    from wanstore.cli._demo import run_demo

    result = run_demo(folder, say=(lambda _: None) if as_json else click.echo)
    if as_json:
        print_json(result)
