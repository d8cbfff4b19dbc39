"""What several commands of `wanstore` share: options, and how they print."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wanstore.benchmarking.presets import Preset
    from wanstore.interfaces import WeightStore

_STORE_HELP = "A folder, file:///folder, or the URL of an installed backend."


def store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--store`."""
    return click.option("--store", "store_url", required=True, envvar="WANSTORE_STORE", help=_STORE_HELP)(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")(function)


def dtype_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dtype`, as dtypes by component; which there are is known to what loads."""
    told = "Compute in another dtype, as vae=float32. May be repeated.  [default: float16]"
    option = click.option("--dtype", multiple=True, metavar="COMPONENT=DTYPE", callback=_by_component, help=told)
    return option(function)


def memory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--memory`."""
    told = "Which parts stay on the GPU: what fits, all, or all but the text encoder when it does not work."
    choice = click.Choice(["auto", "resident", "streamed"])
    return click.option("--memory", type=choice, default="auto", show_default=True, help=told)(function)


def _by_component(_context: click.Context, _parameter: click.Parameter, options: Sequence[str]) -> dict[str, str]:
    for option in options:
        if "=" not in option:
            raise click.BadParameter(f"{option!r} is not COMPONENT=DTYPE")
    return dict(option.split("=", 1) for option in options)


def open_store_at(url: str) -> WeightStore:
    """The store; imported when it is needed."""
    from wanstore.stores import open_store

    return open_store(url)


def print_json(document: Any) -> None:
    """One JSON document, for machines."""
    click.echo(json.dumps(document, indent=2))


def resize(preset: Preset, *, size: str | None, frames: int | None, steps: int | None = None) -> Preset:
    """The preset with what was asked for instead of its own; what cannot be is wrong usage."""
    import attrs

    changes: dict[str, Any] = {k: v for k, v in {"steps": steps, "frames": frames}.items() if v is not None}
    if size:
        width, _, height = size.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise click.BadParameter(f"{size!r} is not WIDTHxHEIGHT", param_hint="--size")
        changes |= {"width": int(width), "height": int(height)}
    try:
        return attrs.evolve(preset, **changes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
