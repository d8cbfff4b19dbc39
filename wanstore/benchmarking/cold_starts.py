"""How long a fresh container takes from the call to a ready pipeline, by the form of its snapshot. Plain data."""

from __future__ import annotations

import statistics

import attrs

TARGET_SECONDS = 5.0
"""What wanstore is built for: ready in less, with a snapshot of the GPU."""
NO_SNAPSHOT = "none"


@attrs.frozen
class Start:
    """One start, in seconds by the wall clocks of the caller and of the container.

    Attributes:
        seconds: from the call to a ready pipeline.
        placing: from the call to the container's own first line, be it a restored one's: Modal's part.
        loading: from there to the ready pipeline.
        weights: of these, what waited for the weights; 0 where the snapshot had them.
        size_bytes: weights moved in that time.
        restored: from a snapshot that was there; False where this very start made it, or had none.
    """

    seconds: float
    placing: float
    loading: float
    weights: float = 0.0
    size_bytes: int = 0
    restored: bool = False


@attrs.frozen
class ColdStarts:
    """The starts of one form, in their order, and what those that failed said."""

    form: str
    starts: tuple[Start, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def counted(self) -> tuple[Start, ...]:
        """Those that count: of a form with a snapshot, the restored ones."""
        return tuple(one for one in self.starts if one.restored or self.form == NO_SNAPSHOT)

    @property
    def seconds(self) -> float | None:
        """The median start, in seconds; None where none counts."""
        return statistics.median(one.seconds for one in self.counted) if self.counted else None

    @property
    def gigabytes_a_second(self) -> float | None:
        """The median rate of the weights; None where none were moved."""
        rates = [one.size_bytes / 1e9 / one.weights for one in self.counted if one.size_bytes and one.weights]
        return statistics.median(rates) if rates else None

    @property
    def verdict(self) -> str:
        """Against `TARGET_SECONDS`, failures first."""
        failed = f"{len(self.failures)} of {len(self.starts) + len(self.failures)} failed; " if self.failures else ""
        if self.seconds is None:
            return f"{failed}no start counts"
        return f"{failed}{'within' if self.seconds < TARGET_SECONDS else 'beyond'} {TARGET_SECONDS:g} s"
