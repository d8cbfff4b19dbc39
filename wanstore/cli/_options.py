"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.shell_completion import CompletionItem

from wanstore.choices import CompileMode, MemoryMode
from wanstore.errors import NotFoundError, NotSupportedError, WanstoreError

if TYPE_CHECKING:
    from wanstore.interfaces import WeightStore
    from wanstore.presets import Preset

_STORE_HELP = "A folder, modal://VOLUME, s3://BUCKET or another URL.  [default: WANSTORE_STORE]"
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def filled(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A callback that refuses an empty place: an unset variable would otherwise mean the current folder."""
    if value is not None and not value.removeprefix("file://"):
        raise click.BadParameter("it is empty")
    return value


class FilledPath(click.Path):
    """A path that is not empty; see `filled`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers, without NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def folders(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """For the shell to complete: folders, where a store or a source is wanted."""
    return [CompletionItem(typed, type="dir")]


def stored_names(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """For the shell to complete: pipelines in the folder that the line, or WANSTORE_STORE, names so far.

    Not in a store that is reached over a network: nobody waits for that at a prompt.
    """
    from wanstore.building._artifacts import is_compiled
    from wanstore.stores.local import LocalStore

    url = context.params.get("store_url") or context.params.get("source")
    with suppress(WanstoreError, OSError):
        store = open_store_at(url)
        stored = store.list().pipelines if isinstance(store, LocalStore) else ()
        return [one.name for one in stored if one.name.startswith(typed) and not is_compiled(one)]
    return []


def preset_names(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """For the shell to complete: presets, each after the last comma."""
    from wanstore.presets import load_presets

    before, comma, begun = typed.rpartition(",")
    with suppress(WanstoreError):
        presets = load_presets(context.params.get("presets_file"))
        return [f"{before}{comma}{name}" for name in presets if name.startswith(begun)]
    return []


def store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--store`."""
    option = click.option(
        "--store", "store_url", envvar="WANSTORE_STORE", callback=_store, shell_complete=folders, help=_STORE_HELP
    )
    return option(function)


def device_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--device`. Whether the device exists is checked by the load."""
    text = "cuda, cuda:1 or cpu.  [default: cuda if there is one]"
    return click.option("--device", callback=_device, help=text)(function)


def preset_option(**settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--preset`, as a `Preset`."""
    return click.option("--preset", callback=_preset, shell_complete=preset_names, **settings)


def presets_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--presets`, for `named_presets`."""
    text = "Preset names, separated by commas.  [default: all]"
    return click.option("--presets", "wanted", shell_complete=preset_names, help=text)(function)


def compile_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--compile`."""
    text = "Quicker transformer blocks: those that wanstore compile has stored (cached), or compiled now (on)."
    choice = click.Choice(get_args(CompileMode))
    return click.option("--compile", type=choice, default="off", show_default=True, help=text)(function)


def size_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Another size than a preset's, and the file that presets come from."""
    options = (
        click.option("--presets-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                     help="A TOML file with presets that add to wanstore's, or change them."),
        click.option("--size", help="WIDTHxHEIGHT instead of the preset's; multiples of 16."),
        click.option("--frames", type=int, help="Number of frames instead of the preset's; 4k+1."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def clip_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What of a preset may be another for once, and the file that presets come from."""
    options = (
        size_options,
        click.option("--guidance", "guidance_scale", type=FiniteRange(0, min_open=True),
                     help="How closely to follow the prompt.  [default: the model's]"),
        click.option("--flow-shift", type=FiniteRange(0, min_open=True),
                     help="Shift of the noise schedule; larger for form and motion.  [default: the model's]"),
        click.option("--negative-prompt", help="What it should not show; '' for nothing.  [default: the model's]"),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(function)


def dtype_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dtype`, as dtypes by component."""
    text = "Compute a component in another dtype, as in vae=float32. May be repeated.  [default: float16]"
    option = click.option("--dtype", multiple=True, metavar="COMPONENT=DTYPE", callback=_by_component, help=text)
    return option(function)


def memory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--memory`."""
    text = "What stays on the GPU: auto, what fits; resident, all; offload, the text encoder only while it works."
    choice = click.Choice(get_args(MemoryMode))
    return click.option("--memory", type=choice, default="auto", show_default=True, help=text)(function)


def key_values(_context: click.Context, parameter: click.Parameter, options: Sequence[str]) -> dict[str, str]:
    """A callback for a repeated option of the form that its metavar shows, such as NAME=VALUE."""
    for option in options:
        if not option.partition("=")[0].isidentifier() or "=" not in option:
            raise click.BadParameter(f"{option!r} is not {parameter.metavar}")
    return dict(option.split("=", 1) for option in options)


def _by_component(context: click.Context, parameter: click.Parameter, options: Sequence[str]) -> dict[str, str]:
    dtypes = key_values(context, parameter, options)
    if dtypes:
        from wanstore.building._dtypes import check_dtypes

        try:
            check_dtypes(dtypes)
        except NotSupportedError as error:
            raise click.BadParameter(str(error)) from error
    return dtypes


def _store(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        raise click.UsageError("No store is named. Use --store, or set WANSTORE_STORE.")
    return filled(context, parameter, value)


def _device(_context: click.Context, _parameter: click.Parameter, device: str | None) -> str | None:
    if device is not None and not _DEVICE.fullmatch(device):
        raise click.BadParameter(f"{device!r} is neither cpu nor cuda, nor cuda with a number as in cuda:1")
    return device


def _preset(_context: click.Context, _parameter: click.Parameter, name: str | None) -> Preset | None:
    if name is None:
        return None
    from wanstore.presets import preset_named

    try:
        return preset_named(name)
    except NotFoundError as error:
        raise click.BadParameter(str(error)) from error


def open_store_at(url: str | None) -> WeightStore:
    """The store at `url`; what opens it is imported only now."""
    from wanstore.stores import open_store

    return open_store(url)


def chosen_presets(names: Sequence[str] | None, file: Path | None, model: str = "") -> list[Preset]:
    """The presets of those names, all if there are none, by the model's recipe."""
    from wanstore.presets import load_presets, preset_named

    presets = load_presets(file, model)
    return list(presets.values()) if names is None else [preset_named(name, presets) for name in names]


def named_presets(wanted: str | None, file: Path | None, model: str) -> list[Preset]:
    """The presets of `--presets`, by the model's recipe; unknown names are wrong usage."""
    names = None if wanted is None else [name.strip() for name in wanted.split(",") if name.strip()]
    if names == []:
        known = ", ".join(preset.name for preset in chosen_presets(None, file))
        raise click.BadParameter(f"{wanted!r} names no preset. Use some of: {known}.", param_hint="--presets")
    try:
        return chosen_presets(names, file, model)
    except NotFoundError as error:
        raise click.BadParameter(str(error), param_hint="--presets") from error


def changed(preset: Preset, *, size: str | None, **changes: Any) -> Preset:
    """The preset with another size, or other fields where they are not None; impossible values are wrong usage."""
    import attrs

    changes = {key: value for key, value in changes.items() if value is not None}
    if size:
        width, _, height = size.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise click.BadParameter(f"{size!r} is not WIDTHxHEIGHT", param_hint="--size")
        changes |= {"width": int(width), "height": int(height)}
    try:
        return attrs.evolve(preset, **changes)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
