"""How a command ends when memory does not suffice."""

from __future__ import annotations

import pytest

from wanstore.cli._faults import plain_memory_errors
from wanstore.errors import DeviceMemoryError
from wanstore.presets import ClipSize


def test_a_clip_that_is_too_large_for_the_memory_is_named() -> None:
    """With what torch says; its other errors stay what they are."""
    told = r"64×64 and 5 frames .*\(CUDA out of memory\.\)"
    with pytest.raises(DeviceMemoryError, match=told), plain_memory_errors(ClipSize(64, 64, 5)):
        raise RuntimeError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="illegal"), plain_memory_errors(ClipSize(64, 64, 5)):
        raise RuntimeError("an illegal memory access")
