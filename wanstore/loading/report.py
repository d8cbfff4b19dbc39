"""What a load cost, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs


@attrs.frozen
class Phase:
    """One step of a load; `size_bytes` is what it read, 0 when it read next to nothing."""

    name: str
    seconds: float
    size_bytes: int = 0


@attrs.frozen
class LoadReport:
    """Where a load's time went. `seconds` is the whole call, `size_bytes` the weight files' tensor data."""

    folder: str
    device: str
    seconds: float
    size_bytes: int
    phases: tuple[Phase, ...]

    def phase(self, name: str) -> Phase:
        """The phase of that name; raises `KeyError` when the load had none."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)

    def lines(self) -> list[str]:
        """The report as a table, one string a line: phase, seconds, GB and GB/s."""
        rows = [*self.phases, Phase("total", self.seconds, self.size_bytes)]
        return [
            f"{self.folder} on {self.device}",
            f"{'phase':<10} {'seconds':>8} {'GB':>8} {'GB/s':>7}",
            *(_row(phase) for phase in rows),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _row(phase: Phase) -> str:
    gigabytes = phase.size_bytes / 1e9
    rate = gigabytes / phase.seconds if phase.seconds else 0.0
    read = f" {gigabytes:>8.3f} {rate:>7.2f}" if phase.size_bytes else ""
    return f"{phase.name:<10} {phase.seconds:>8.3f}{read}"


class PhaseClock:
    """Times phases that follow one another; what lies between two of them counts in the total only."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._phases: list[Phase] = []

    @contextmanager
    def phase(self, name: str, size_bytes: int = 0) -> Iterator[None]:
        """Time the block as the phase `name`."""
        began = time.perf_counter()
        yield
        self._phases.append(Phase(name, time.perf_counter() - began, size_bytes))

    def report(self, folder: str, device: str) -> LoadReport:
        """All that was timed so far."""
        size = sum(phase.size_bytes for phase in self._phases if phase.name == "weights")
        return LoadReport(folder, device, time.perf_counter() - self._began, size, tuple(self._phases))
