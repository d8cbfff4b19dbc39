"""How a command ends: one line, whatever the fault says, and when memory does not suffice."""

from __future__ import annotations

import pytest

from wanstore.cli._faults import one_line, plain_memory_errors
from wanstore.errors import DeviceMemoryError
from wanstore.presets import ClipSize


def test_a_clip_that_is_too_large_for_the_memory_is_named() -> None:
    """With what torch says; its other errors stay what they are."""
    told = r"64×64 and 5 frames .*\(CUDA out of memory\.\)"
    with pytest.raises(DeviceMemoryError, match=told), plain_memory_errors(ClipSize(64, 64, 5)):
        raise RuntimeError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="illegal"), plain_memory_errors(ClipSize(64, 64, 5)):
        raise RuntimeError("an illegal memory access")


def test_what_could_steer_a_terminal_is_shown_escaped() -> None:
    """A name from a store or a Hub is somebody else's text."""
    assert one_line("a\x1b[2J\n b\ud800\x07 é") == r"a\x1b[2J b\ud800\x07 é"


def test_a_very_long_message_keeps_its_beginning_and_its_next_step() -> None:
    """What a hostile answer says does not fill the screen."""
    line = one_line("It begins " + "x" * 100_000 + ". Check HF_ENDPOINT.")
    assert len(line) < 1100 and line.startswith("It begins x") and line.endswith("x. Check HF_ENDPOINT.")
