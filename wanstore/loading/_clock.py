"""Times a load, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from wanstore.loading._report import Attention, LoadReport, Phase
from wanstore.transfer._record import TransferRecord


class PhaseClock:
    """Times a load: phases of the calling thread, which follow one another, and the transfer beside them."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._phases: list[Phase] = []
        self._waited_seconds = 0.0
        self._transfer: TransferRecord | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as the phase `name`."""
        began = time.perf_counter()
        yield
        self._phases.append(Phase(name, time.perf_counter() - began, began_seconds=began - self._began))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the block as waiting for the transfer."""
        began = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - began

    def transferred(self, began: float, transfer: TransferRecord) -> None:
        """The transfer, which began at `began` by `time.perf_counter`, is over: it is the phase `weights`."""
        self._transfer = transfer
        self._phases.append(Phase("weights", transfer.seconds, transfer.size_bytes, began - self._began))

    def report(self, folder: str, device: str, attention: Attention | None = None) -> LoadReport:
        """All that was timed so far."""
        spent = {phase.name: phase.seconds for phase in self._phases if phase.name != "weights"}
        if self._transfer:
            held_up = self._transfer.bound_by
            spent[held_up] = spent.get(held_up, 0.0) + self._waited_seconds
        return LoadReport(
            folder=folder,
            device=device,
            seconds=time.perf_counter() - self._began,
            size_bytes=self._transfer.size_bytes if self._transfer else 0,
            phases=tuple(sorted(self._phases, key=lambda phase: phase.began_seconds)),
            bound_by=max(spent, key=lambda name: spent[name]),
            transfer=self._transfer,
            attention=attention,
        )
