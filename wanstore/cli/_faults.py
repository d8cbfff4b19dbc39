"""How `wanstore` ends: a fault, or Ctrl-C, is one line and exit status 1."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from wanstore._error_translation import first_line, lacks_memory, of_system
from wanstore.display import escaped
from wanstore.errors import DeviceMemoryError, NotSupportedError, WanstoreError

if TYPE_CHECKING:
    from wanstore.presets import ClipSize

_LINE_MAX = 1000
_RESUMABLE = ("setup", "bench")
"""The commands that resume what an earlier run has done."""


class Commands(click.Group):
    """Commands whose foreseeable faults are one line and exit status 1. click reports wrong usage, with status 2."""

    def main(self, args: Any = None, *more: Any, **settings: Any) -> Any:
        _check_streams()
        arguments = list(sys.argv[1:] if args is None else args)
        settings["standalone_mode"] = False  # click would report Ctrl-C in its own words
        with _interrupts_noted() as noted:
            try:
                status = super().main(arguments, *more, **settings) or 0
            except click.ClickException as error:
                error.show()
                status = error.exit_code
            except (Exception, KeyboardInterrupt) as error:
                interrupted = noted or isinstance(error, KeyboardInterrupt | click.Abort)
                text = _interrupted(arguments) if interrupted else _text_of(error)
                if text is None:
                    raise
                click.echo(one_line(f"wanstore: {text}"), err=True)
                status = 1
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error  # or click prints an empty line


def _check_streams() -> None:
    """End when stdout is closed: its answer would be lost, and the next file that is opened would get its number."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        click.echo("wanstore: stdout is closed. Send it to a file, or to /dev/null.", err=True)
        sys.exit(1)


def one_line(text: str) -> str:
    """`text` in one line that a terminal may show, the middle cut out of a very long one."""
    line = escaped(" ".join(text.split()))
    return line if len(line) <= _LINE_MAX else f"{line[: _LINE_MAX // 2]} [...] {line[-_LINE_MAX // 2 :]}"


def _text_of(error: BaseException) -> str | None:
    """The message of a foreseeable fault, with its next step; None for any other error."""
    if isinstance(error, OSError) and not isinstance(error, WanstoreError):
        error = of_system(error)
    if isinstance(error, ImportError) or str(error).startswith("Failed to import"):  # the latter is diffusers'
        error = _broken_library(error)
    return str(error) if isinstance(error, WanstoreError) else None


def _broken_library(error: BaseException) -> NotSupportedError:
    """What is wrong with a library that cannot be imported: others wrap it many times over."""
    root = error
    while reason := root.__cause__ or root.__context__:
        root = reason
    return NotSupportedError(
        f"A library that wanstore needs cannot be imported ({first_line(root)})",
        "See which one with: wanstore doctor, then install it again, or uninstall it if it is torchvision or xformers",
    )


def _interrupted(arguments: list[str]) -> str:
    # Python ends by the signal, whatever was caught since, if the interrupt came in an exec() of source text, as attrs'
    # and dataclasses' are. The next one that goes well makes it forget that.
    exec("")  # noqa: S102
    resumes = arguments[:1] and arguments[0] in _RESUMABLE
    return f"Interrupted. Run the same command again: it {'resumes' if resumes else 'starts from the beginning'}."


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Note Ctrl-C when it comes: during an import it may turn into another error."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # in the background it is ignored
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def plain_memory_errors(clip: ClipSize) -> Iterator[None]:
    """Turn what Python and torch raise when a clip does not fit in memory into `DeviceMemoryError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, WanstoreError) or not lacks_memory(error):
            raise
        raise DeviceMemoryError(
            f"{clip} takes more memory than is free ({first_line(error)})",
            "Free some memory, make the clip smaller, or use a larger machine",
        ) from error
