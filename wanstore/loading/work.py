"""The pieces that are still to be moved, and what moving them took."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import attrs

from wanstore.loading.layout import Piece


@attrs.frozen
class Times:
    """Seconds that went by with waiting: for bytes to be read, and for the device to have copied them."""

    read_seconds: float
    wait_seconds: float


class Work:
    """A queue of pieces, for several threads; `advance` hears of the bytes of each that is done."""

    def __init__(self, pieces: Iterable[Piece], advance: Callable[[int], None] = lambda _: None) -> None:
        self._pieces = deque(pieces)
        self._advance = advance

    def __len__(self) -> int:
        return len(self._pieces)

    def take(self) -> Piece | None:
        """The next piece; None when there is no more, or no more shall be moved."""
        try:
            return self._pieces.popleft()
        except IndexError:
            return None

    def done(self, piece: Piece) -> None:
        """The piece was moved."""
        self._advance(piece.stop - piece.start)

    def stop(self) -> None:
        """There is nothing more to take."""
        self._pieces.clear()
