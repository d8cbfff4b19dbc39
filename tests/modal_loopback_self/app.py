"""A small app for the loopback's own tests: a function, and one that spawns it."""

from __future__ import annotations

import time

import modal

app = modal.App("small")


@app.function()
def half(number: int, seconds: float = 0) -> int:
    """Half of it, after a while."""
    time.sleep(seconds)
    return number // 2


@app.function()
def start_half(number: int) -> str:
    """The id of a call that halves it."""
    return str(half.spawn(number).object_id)
