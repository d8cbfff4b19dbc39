"""The command in the tests' own process, which is many times as quick as one of its own."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from wanstore.cli import main


def in_here(*arguments: str | Path, **environment: str) -> Result:
    """Run the command; what it does not foresee is raised."""
    result = CliRunner(env=environment).invoke(main, list(map(str, arguments)))
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result
