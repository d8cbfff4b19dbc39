"""The `wanstore` command. Exit status: 0 done; 1 it failed, with one line that says why; 2 wrong usage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import wanstore
from wanstore.cli._bench import bench
from wanstore.cli._faults import Commands, plain_memory_errors
from wanstore.cli._options import (
    FilledPath,
    FiniteRange,
    device_option,
    dtype_option,
    filled,
    json_option,
    memory_option,
    open_store_at,
    preset_option,
    print_json,
    resize,
    store_option,
)

if TYPE_CHECKING:
    from wanstore.presets import Preset


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(wanstore.__version__)
def main() -> None:
    """Wan 2.1 weights from their publisher to a ready GPU pipeline.

    \b
    wanstore setup Wan-AI/Wan2.1-T2V-1.3B-Diffusers --store ./models
    wanstore generate wan2.1-fp16 --store ./models --prompt "a cat on a skateboard" --out cat.mp4

    WANSTORE_STORE stands in for --store.
    """


@main.command()
@click.argument("source", callback=filled)
@store_option
@click.option("--name", default="wan2.1-fp16", show_default=True, help="What the store calls it.")
@click.option("--revision", help="Branch, tag or commit of a Hub repo.  [default: main]")
@click.option("--replace", is_flag=True, help="Swap out a stored pipeline of that name, in one step.")
@click.option("--overflow", type=click.Choice(["refuse", "clamp"]), default="refuse", show_default=True,
              help="What to do with values beyond 65504, which float16 cannot hold.")  # fmt: skip
@click.option("--keep-source", type=FilledPath(path_type=Path, file_okay=False),
              help="Keep the downloaded source in this folder.")  # fmt: skip
@json_option
def setup(source: str, store_url: str, name: str, as_json: bool, overflow: Any, **options: Any) -> None:
    """Fetch SOURCE, convert it to float16 and seal it in the store.

    SOURCE is a Hub repo such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or a diffusers folder. An interrupted run
    goes on where it stopped; a second run of the same recipe has nothing to do.
    """
    from wanstore._json import to_json
    from wanstore.api import setup as run_setup
    from wanstore.cli._terminal import TerminalProgress, human_bytes
    from wanstore.conversion.fp16 import Fp16Converter

    converter = Fp16Converter(overflow=overflow)
    with TerminalProgress(quiet=as_json) as progress:
        manifest = run_setup(source, store_url, name=name, converter=converter, progress=progress, **options)
    if as_json:
        print_json(to_json(manifest))
    else:
        click.echo(f"{name}: {len(manifest.files)} files, {human_bytes(manifest.size_bytes)}, sealed in {store_url}")


@main.command("list")
@store_option
@json_option
def list_pipelines(store_url: str, as_json: bool) -> None:
    """List the sealed pipelines of a store."""
    from wanstore._json import to_json

    manifests = open_store_at(store_url).list()
    if as_json:
        print_json([{**to_json(m), "size_bytes": m.size_bytes} for m in manifests])
    elif manifests:
        from wanstore.cli._terminal import list_table
        from wanstore.cli._terminal import show as show_tables

        show_tables(list_table(manifests))
    else:
        click.echo(
            f"Nothing is stored in {store_url}. Fill it with: wanstore setup SOURCE --store {store_url}", err=True
        )


@main.command()
@click.argument("name")
@store_option
@click.option("--tensors", is_flag=True, help="Also what the conversion did to each tensor.")
@json_option
def show(name: str, store_url: str, tensors: bool, as_json: bool) -> None:
    """Show a pipeline's manifest: source, conversion, files."""
    from wanstore._json import to_json
    from wanstore.manifest import read_tensor_records

    store = open_store_at(store_url)
    manifest = store.manifest(name)
    records = read_tensor_records(store.local_path(name)) if tensors else {}
    if as_json:
        print_json({**to_json(manifest), "digest": manifest.digest, **({"tensors": records} if tensors else {})})
        return
    from wanstore.cli._terminal import manifest_tables, tensors_table
    from wanstore.cli._terminal import show as show_tables

    show_tables(*manifest_tables(manifest), *(tensors_table(component, rows) for component, rows in records.items()))


@main.command()
@click.argument("name")
@store_option
@json_option
def verify(name: str, store_url: str, as_json: bool) -> None:
    """Hash every file again; status 1 if one is damaged, missing or extra."""
    import attrs

    from wanstore.cli._terminal import TerminalProgress, human_bytes

    with TerminalProgress(quiet=as_json) as progress:
        report = open_store_at(store_url).verify(name, progress=progress)
    if as_json:
        print_json({**attrs.asdict(report), "ok": report.ok})
    else:
        rate = human_bytes(int(report.size_bytes / max(report.seconds, 1e-9)))
        click.echo(f"{name}: {report.files} files, {human_bytes(report.size_bytes)} hashed at {rate}/s")
        for kind in ("damaged", "missing", "extra"):
            for path in getattr(report, kind):
                click.echo(f"{kind}: {path}")
        click.echo("whole" if report.ok else "NOT whole: run setup again with --replace")
    sys.exit(0 if report.ok else 1)


@main.command()
@click.argument("name")
@store_option
@json_option
def delete(name: str, store_url: str, as_json: bool) -> None:
    """Remove a pipeline from a store."""
    open_store_at(store_url).delete(name)
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(f"{name}: deleted from {store_url}")


@main.command()
@click.argument("name")
@store_option
@click.option("--prompt", required=True, help="What the clip shows.")
@click.option("--negative-prompt", default="", help="What it should not show.")
@preset_option(default="480p/3s", show_default=True, help="Resolution and duration.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps.  [default: the preset's]")
@click.option("--size", help="WIDTHxHEIGHT instead of the preset's, multiples of 16.")
@click.option("--frames", type=int, help="Frames instead of the preset's, 4k+1.")
@click.option("--seed", type=click.IntRange(-(2**63), 2**64 - 1), default=0, show_default=True,
              help="The same seed gives the same clip.")  # fmt: skip
@device_option
@dtype_option
@memory_option
@click.option("--verify", is_flag=True, help="Hash the weights before they are used.")
@click.option("--out", type=FilledPath(path_type=Path, dir_okay=False), default="clip.mp4", show_default=True)
@json_option
def generate(name: str, store_url: str, prompt: str, negative_prompt: str, seed: int, device: str | None,
             dtype: Any, memory: Any, verify: bool, out: Path, as_json: bool, preset: Preset,
             **size: Any) -> None:  # fmt: skip
    """Load a pipeline and make a clip: an mp4 at 16 frames a second."""
    from wanstore.api import load
    from wanstore.cli._terminal import TerminalProgress
    from wanstore.generation import check_place, write_clip
    from wanstore.generation import generate as make_clip

    preset = resize(preset, **size)
    check_place(out)
    with plain_memory_errors(preset.clip):
        with TerminalProgress(quiet=as_json) as progress:
            pipe = load(
                name, store=store_url, device=device, dtype=dtype, memory=memory, verify=verify, progress=progress
            )
            frames = make_clip(pipe, prompt, preset, negative_prompt=negative_prompt, seed=seed, progress=progress)
        write_clip(frames, out)
    plan = getattr(pipe, "memory_plan", None)
    told = {"memory_plan": str(plan)} if plan else {}
    if as_json:
        import attrs

        print_json({"clip": str(out), "frames": len(frames), "load": attrs.asdict(pipe.load_report), **told})
    else:
        click.echo(str(pipe.load_report))
        if plan:
            click.echo(f"memory: {plan}")
        click.echo(f"{out}: {len(frames)} frames of {preset.width}x{preset.height}, {len(frames) / 16:.1f} s")


main.add_command(bench)


@main.command()
@click.argument("name", required=False)
@click.option("--store", "store_url", envvar="WANSTORE_STORE", callback=filled, help="Where NAME is.")
@click.option("--folder", type=FilledPath(path_type=Path, file_okay=False, exists=True), default=".",
              help="Where to measure the disk.  [default: here]")  # fmt: skip
@preset_option(help="Only tell how NAME shares out the memory for a clip of it.")
@click.option("--memory-gib", type=FiniteRange(0, min_open=True),
              help="With --preset: on a GPU with so much free.  [default: this machine's]")  # fmt: skip
@dtype_option
@json_option
def doctor(name: str | None, store_url: str | None, folder: Path, preset: Preset | None, memory_gib: float | None,
           dtype: dict[str, str], as_json: bool) -> None:  # fmt: skip
    """Say what this machine can do: GPU, memory, speeds, attention backends, versions.

    With NAME the pipeline is loaded too, and the load compared with the speeds. With --preset it is not: then only the
    plan is told by which it makes a clip of that preset, with the peak that each stage counts on.
    """
    from wanstore.cli._doctor import examine, plan_memory

    if name is not None and not store_url:
        raise click.UsageError("--store says where NAME is")
    if not (preset and name is not None) and (preset or memory_gib or dtype):
        raise click.UsageError("--memory-gib and --dtype go with --preset, and that with NAME")
    pipeline = None if name is None else open_store_at(str(store_url)).local_path(name)
    if preset and pipeline:
        findings = plan_memory(pipeline, preset, dtype, memory_gib)
        if findings is None:
            raise click.UsageError("torch finds no GPU here: --memory-gib says how much one has")
    else:
        findings = examine(folder, pipeline)
    if as_json:
        print_json(findings)
        return
    for topic, finding in findings.items():
        text = ", ".join(f"{k} {v}" for k, v in finding.items()) if isinstance(finding, dict) else finding
        click.echo(f"{topic:>10}  {text}")


@main.command()
@click.option("--folder", type=FilledPath(path_type=Path, file_okay=False), default="wanstore-demo",
              show_default=True, help="Where the store and the clip go.")  # fmt: skip
@json_option
def demo(folder: Path, as_json: bool) -> None:
    """Show all of it on a tiny Wan 2.1 with random weights, made on the spot, on a CPU, in about a minute."""
    from wanstore.cli._demo import run_demo

    result = run_demo(folder, say=(lambda _: None) if as_json else click.echo)
    if as_json:
        print_json(result)
