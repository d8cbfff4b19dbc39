"""The way to a GPU: through a ring of pinned memory, by copies that the device makes on its own."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import attrs
import torch

from wanstore.loading.cuda_driver import CudaDriver
from wanstore.loading.lanes import DTYPES, elements_of
from wanstore.loading.layout import Layout, Part, Piece
from wanstore.loading.sources import ROOM_BYTES, Source
from wanstore.safetensors_format import ITEM_BYTES

SLOTS = 2
"""Pieces of pinned memory a lane: while one is copied to the device, the next is read."""


@attrs.frozen
class Slot:
    """Room for one piece: as Python sees it, its address, and the event that comes when its copy is done."""

    room: memoryview
    address: int
    copied: int


class Ring:
    """Pinned memory for the pieces under way. A GPU copies from it by itself.

    Pinning pages that are there already, and huge ones at that, is ten times as quick as asking the driver for
    pinned memory; and one call for all of it is quicker than one for each slot, which would hold up copies.
    """

    def __init__(self, lanes: int, driver: CudaDriver) -> None:
        self._driver = driver
        memory = mmap.mmap(-1, lanes * SLOTS * ROOM_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        share = len(memory) // lanes
        with ThreadPoolExecutor(lanes, "wanstore-touch") as pool:
            list(pool.map(lambda lane: ctypes.memset(self._address + lane * share, 0, share), range(lanes)))
        driver.pin(self._address, len(memory))
        room = memoryview(memory)
        self.slots = [
            Slot(room[begin : begin + ROOM_BYTES], self._address + begin, driver.make_event())
            for begin in range(0, len(memory), ROOM_BYTES)
        ]

    def close(self) -> None:
        """Take the pin off again. The memory is freed with the last slot."""
        for slot in self.slots:
            self._driver.drop_event(slot.copied)
        self._driver.unpin(self._address)


class CudaLane:
    """To buffers on a GPU, through slots and a stream of its own. Casts happen on the device."""

    def __init__(
        self,
        source: Source,
        layout: Layout,
        buffers: list[torch.Tensor],
        slots: list[Slot],
        scratch: torch.Tensor,
        driver: CudaDriver,
    ) -> None:
        """`scratch` is memory on the device for one piece that has to be cast."""
        self._source, self._layout, self._buffers, self._scratch = source, layout, buffers, scratch
        self._addresses = [buffer.data_ptr() for buffer in buffers]
        self._slots, self._driver = slots, driver
        self._turn = self._stream = 0
        self._entered = ExitStack()
        self.read_seconds = self.wait_seconds = 0.0

    def __enter__(self) -> Self:
        self._stream = self._entered.enter_context(self._driver.stream())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered.close()

    def move(self, piece: Piece) -> None:
        slot = self._slots[self._turn % len(self._slots)]
        began = time.perf_counter()
        if self._turn >= len(self._slots):
            self._driver.wait(slot.copied)
        self._turn += 1
        free = time.perf_counter()
        first = self._source.fill(piece, slot.room)
        self.wait_seconds += free - began
        self.read_seconds += time.perf_counter() - free
        held = slot.address + first - piece.start
        for part in piece.parts:
            self._copy(part, held + part.start)
        self._driver.record(slot.copied, self._stream)

    def _copy(self, part: Part, held: int) -> None:
        kind = self._layout.buffers[part.buffer]
        size = part.stop - part.start
        if kind.stored == kind.final:
            target = self._addresses[part.buffer] + part.element * ITEM_BYTES[kind.final]
            self._driver.copy(target, held, size, self._stream)
        else:
            self._driver.copy(self._scratch.data_ptr(), held, size, self._stream)
            elements_of(part, self._layout, self._buffers).copy_(self._scratch[:size].view(DTYPES[kind.stored]))


@contextmanager
def cuda_lanes(source: Source, layout: Layout, buffers: list[torch.Tensor], count: int) -> Iterator[list[CudaLane]]:
    """`count` ways to the GPU that holds the buffers; what they share is let go at the block's end."""
    casts = any(buffer.stored != buffer.final for buffer in layout.buffers)
    # One allocation, in the caller's stream: made in a lane's own stream it would stay that stream's for ever.
    scratch = torch.empty(count, ROOM_BYTES if casts else 0, dtype=torch.uint8, device=buffers[0].device)
    driver = CudaDriver(scratch.device)
    ring = Ring(count, driver)
    try:
        yield [
            CudaLane(source, layout, buffers, ring.slots[number::count], scratch[number], driver)
            for number in range(count)
        ]
    finally:
        ring.close()
