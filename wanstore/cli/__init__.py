"""The `wanstore` command."""

from wanstore.cli._commands import main

__all__ = ["main"]
