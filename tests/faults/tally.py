"""How many faults of each kind were tried, and what did not go as promised."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

TALLY_NAME = "tally.json"
"""The file in which one process hands its tally to another."""


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

    def add(self, other: Tally) -> None:
        """Take over what another process counted."""
        self.counts.update(other.counts)
        for kind, what in other.failures.items():
            self.failures.setdefault(kind, []).extend(what)

    def rows(self) -> list[tuple[str, int, int]]:
        """Kind, how many were tried, how many broke a promise."""
        return [(kind, count, len(self.failures.get(kind, []))) for kind, count in self.counts.items()]

    def to_json(self) -> dict[str, Any]:
        return {"tried": dict(self.counts), "failures": self.failures}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Tally:
        return cls(Counter(document["tried"]), document["failures"])
