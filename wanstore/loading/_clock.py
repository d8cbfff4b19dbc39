"""Times a load, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wanstore.loading._report import LoadReport, Phase, Ready
from wanstore.transfer._record import TransferRecord

if TYPE_CHECKING:  # it brings torch, which a load imports later
    from wanstore.transfer._transfer import Transfer


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
    def waiting(self, transfer: Transfer) -> Iterator[None]:
        """Time the block as waiting for `transfer`, which is over after it: it becomes the phase `weights`."""
        began = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - began
        self._transfer = record = transfer.record
        self._phases.append(Phase("weights", record.seconds, record.size_bytes, transfer.began - self._began))

    def report(self, folder: str, device: str, ready: Ready | None = None) -> LoadReport:
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
            attention=ready.attention if ready else None,
            compiled=ready.compiled if ready else None,
        )
