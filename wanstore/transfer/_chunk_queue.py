"""The chunks that are still to be moved, and what moving them took."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import attrs

from wanstore.transfer._layout import Chunk


@attrs.frozen
class Times:
    """Seconds spent waiting for bytes to be read, and for the device to copy them; by which `way` they went."""

    read_seconds: float
    wait_seconds: float
    way: str = ""


class ChunkQueue:
    """A queue of chunks, for several threads; `advance` receives the size of each chunk that is done."""

    def __init__(self, chunks: Iterable[Chunk], advance: Callable[[int], None] = lambda _: None) -> None:
        self._chunks = deque(chunks)
        self._advance = advance

    def __len__(self) -> int:
        return len(self._chunks)

    def take(self) -> Chunk | None:
        """The next chunk; None if there is none, or the queue was stopped."""
        try:
            return self._chunks.popleft()
        except IndexError:
            return None

    def put_back(self, chunk: Chunk) -> None:
        """The chunk that was taken last is still to be moved."""
        self._chunks.appendleft(chunk)

    def done(self, chunk: Chunk) -> None:
        """The chunk was moved."""
        self._advance(chunk.stop - chunk.start)

    def stop(self) -> None:
        """Drop the chunks that are left."""
        self._chunks.clear()
