"""`wanstore cache`: look at what remote stores keep on this machine, and clear it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs
import click

from wanstore.cli._json import print_json
from wanstore.cli._options import json_option
from wanstore.display._text import escaped, human_bytes

if TYPE_CHECKING:
    from wanstore.stores.cache import CachedPipeline


@click.group("cache")
def cache_commands() -> None:
    """Look at the cache of remote stores, and clear it.

    It is in the folder that WANSTORE_CACHE names, and WANSTORE_CACHE_GIB limits what downloads may take of it.
    """


@cache_commands.command("list")
@json_option
def list_cached(as_json: bool) -> None:
    """List the pipelines in the cache: whole ones, interrupted downloads, and what is staged to go up."""
    from wanstore.cli._terminal import cached_table
    from wanstore.cli._terminal import show as show_tables
    from wanstore.stores.cache import cached
    from wanstore.stores.cache._uses import cache_folder, limit_bytes

    found, limit, folder = cached(), limit_bytes(), cache_folder()
    size = sum(one.size_bytes for one in found)
    if as_json:
        print_json({"folder": str(folder), "limit_bytes": limit, "size_bytes": size, "pipelines": _plain(found)})
        return
    if found:
        show_tables(cached_table(found))
    click.echo(f"{human_bytes(size)} in {folder}" + (f", limited to {limit / (1 << 30):g} GiB" if limit else ""))


@cache_commands.command("clear")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@json_option
def clear_cache(names: tuple[str, ...], as_json: bool) -> None:
    """Delete pipelines from the cache: all of them, or those named. Stores keep what they hold.

    What a running process uses or writes stays. If that was named, the exit status is 1.
    """
    from wanstore.stores.cache import clear

    done = clear(names)
    if as_json:
        print_json({"freed_bytes": done.freed_bytes, "deleted": _plain(done.deleted), "in_use": _plain(done.in_use)})
    else:
        for one in done.deleted:
            click.echo(escaped(f"{one.name}: deleted ({one.state}, {human_bytes(one.size_bytes)})"))
        for one in done.in_use:
            click.echo(escaped(f"{one.name}: stays, it is in use ({one.state}, {human_bytes(one.size_bytes)})"))
        click.echo(f"{human_bytes(done.freed_bytes)} freed")
    sys.exit(1 if names and done.in_use else 0)


def _plain(found: Iterable[CachedPipeline]) -> list[dict[str, Any]]:
    return [{**attrs.asdict(one), "last_used": one.last_used.isoformat(), "folder": str(one.folder)} for one in found]
