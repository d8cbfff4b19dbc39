"""How `wanstore` ends: a fault, or Ctrl-C, is one line and exit status 1."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wanstore._error_translation import first_line, lacks_memory, of_system
from wanstore.cli._json import error_json, print_json
from wanstore.display._text import escaped
from wanstore.errors import DeviceMemoryError, NotSupportedError, WanstoreError

if TYPE_CHECKING:
    from wanstore.presets import ClipSize

_LINE_MAX = 1000
_RESUMABLE = ("setup", "copy", "bench")
"""The commands that resume what an earlier run has done."""


class Commands(click.Group):
    """Commands whose foreseeable faults are one line and exit status 1. click reports wrong usage, with status 2."""

    def main(self, args: Any = None, *more: Any, **settings: Any) -> Any:
        _check_streams()
        arguments = list(sys.argv[1:] if args is None else args)
        settings["standalone_mode"] = False  # click would report Ctrl-C in its own words
        as_json = "--json" in arguments  # what else was asked for may not be known: usage may be wrong
        with _interrupts_noted() as noted:
            try:
                status = super().main(arguments, *more, **settings) or 0
            except click.ClickException as error:
                error.show()
                _answer(error, as_json=as_json)
                status = error.exit_code
            except (Exception, KeyboardInterrupt) as error:
                interrupted = noted or isinstance(error, KeyboardInterrupt | click.Abort)
                fault = _interrupted(arguments) if interrupted else _foreseen(error)
                if fault is None:
                    raise
                _answer(fault, as_json=as_json)
                fail(fault)
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error  # or click prints an empty line


def fail(fault: WanstoreError) -> NoReturn:
    """End with status 1 and a line that says why. What a command raises prints an answer too; this is for after one."""
    click.echo(one_line(f"wanstore: {fault}"), err=True)
    sys.exit(1)


def _answer(fault: WanstoreError | click.ClickException, *, as_json: bool) -> None:
    """With `--json` a fault is the document: whoever reads stdout finds one, whatever happens."""
    if as_json:
        with suppress(OSError):  # stdout itself may be what failed
            print_json(error_json(fault))


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


def _foreseen(error: BaseException) -> WanstoreError | None:
    """A foreseeable fault, with its next step; None for any other error."""
    if isinstance(error, OSError) and not isinstance(error, WanstoreError):
        error = of_system(error)
    if isinstance(error, ImportError) or str(error).startswith("Failed to import"):  # the latter is diffusers'
        error = _broken_library(error)
    return error if isinstance(error, WanstoreError) else None


def _broken_library(error: BaseException) -> NotSupportedError:
    """What is wrong with a library that cannot be imported: others wrap it many times over."""
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:  # none of it is there
        return NotSupportedError(
            f"This needs {error.name}, which is not installed",
            "Install it, or all that wanstore needs: pip install wanstore",
        )
    root = error
    while reason := root.__cause__ or root.__context__:
        root = reason
    return NotSupportedError(
        f"A library that wanstore needs cannot be imported ({first_line(root)})",
        "See which one with: wanstore doctor, then install it again, or uninstall it if it is torchvision or xformers",
    )


class InterruptError(WanstoreError):
    """Somebody pressed Ctrl-C."""


def _interrupted(arguments: list[str]) -> InterruptError:
    # Python ends by the signal, whatever was caught since, if the interrupt came in an exec() of source text, as attrs'
    # and dataclasses' are. The next one that goes well makes it forget that.
    exec("")  # noqa: S102
    resumes = bool(arguments) and arguments[0] in _RESUMABLE
    then = "it resumes" if resumes else "it starts from the beginning"
    fault = InterruptError("Interrupted", f"Run the same command again: {then}")
    fault.resumable = resumes
    return fault


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
