"""How many faults of each kind were tried, and what did not go as promised."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs


@attrs.define
class Tally:
    """Counts by kind, and a line for each broken promise."""

    counts: Counter[str] = attrs.field(factory=Counter)
    failures: dict[str, list[str]] = attrs.field(factory=dict)

    def tried(self, kind: str, times: int = 1) -> None:
        self.counts[kind] += times

    def failed(self, kind: str, what: str) -> None:
        self.failures.setdefault(kind, []).append(what)

    @property
    def ok(self) -> bool:
        return not self.failures

    def rows(self) -> list[tuple[str, int, int]]:
        """Kind, how many were tried, how many broke a promise."""
        return [(kind, count, len(self.failures.get(kind, []))) for kind, count in self.counts.items()]

    def to_json(self) -> dict[str, Any]:
        return {"tried": dict(self.counts), "failures": self.failures}
