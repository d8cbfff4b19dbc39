"""The few calls of NVIDIA's driver that moving a chunk to a GPU needs.

torch has all of them, but releases the interpreter's lock in each one and is slower. Called through ctypes, the quick
ones keep the lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch

from wanstore.errors import DeviceError

_NAME = "libcuda.so.1"
_BLOCKING_WITHOUT_TIMING = 1 | 2
"""CU_EVENT_BLOCKING_SYNC, or waiting threads would burn the cores, and CU_EVENT_DISABLE_TIMING."""
_NOT_READY = 600
_READ_ONLY = 8
"""CU_MEMHOSTREGISTER_READ_ONLY: for mappings that this process may not write."""
_READ_ONLY_SUPPORTED = 113
"""CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED"""


class CudaDriver:
    """The driver of the process, in the context that torch uses for `device`. Raises `DeviceError` on any fault."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._quick, self._slow = ctypes.PyDLL(_NAME), ctypes.CDLL(_NAME)
        self._quick.cuMemcpyHtoDAsync_v2.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        self._quick.cuEventRecord.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._quick.cuEventQuery.argtypes = self._slow.cuEventSynchronize.argtypes = [ctypes.c_void_p]
        self._quick.cuEventDestroy_v2.argtypes = [ctypes.c_void_p]
        self._slow.cuMemHostRegister_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        self._slow.cuMemHostUnregister.argtypes = [ctypes.c_void_p]
        # The thread's context is torch's from here on, and what was begun with the device's memory is over.
        torch.cuda.set_device(device)
        torch.cuda.current_stream(device).synchronize()

    def make_stream(self) -> torch.cuda.Stream:
        """A stream of torch's."""
        return torch.cuda.Stream(self._device)

    def pin(self, address: int, size: int) -> None:
        """Pin memory of this process, so that the device can copy from it by itself."""
        self._check("cuMemHostRegister", self._slow.cuMemHostRegister_v2(address, size, 0))

    @property
    def can_register(self) -> bool:
        """Whether the device reads memory that is mapped read-only."""
        number, found = ctypes.c_int(), ctypes.c_int()
        if self._quick.cuCtxGetDevice(ctypes.byref(number)):
            return False
        asked = self._quick.cuDeviceGetAttribute(ctypes.byref(found), _READ_ONLY_SUPPORTED, number)
        return not asked and bool(found.value)

    def register(self, address: int, size: int) -> bool:
        """Pin memory that is mapped read-only, until `unpin_all`; False where the driver refuses."""
        return not self._slow.cuMemHostRegister_v2(address, size, _READ_ONLY)

    def unpin(self, address: int) -> None:
        """Take the pin off."""
        self._check("cuMemHostUnregister", self._slow.cuMemHostUnregister(address))

    def unpin_all(self, addresses: Iterable[int]) -> None:
        """Take pins off, in one call: another thread may hold the interpreter's lock for most of a second.

        A device that fails meanwhile has said so before, to whoever waited for its copies.
        """
        call_for_each(self._slow.cuMemHostUnregister, addresses)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Have `size` bytes copied from pinned memory to the device's, in the stream's order."""
        self._check("cuMemcpyHtoDAsync", self._quick.cuMemcpyHtoDAsync_v2(target, source, size, stream))

    def make_event(self) -> int:
        """An event, to be dropped again."""
        event = ctypes.c_void_p()
        self._check("cuEventCreate", self._quick.cuEventCreate(ctypes.byref(event), _BLOCKING_WITHOUT_TIMING))
        return event.value or 0

    def drop_event(self, event: int) -> None:
        """Drop an event."""
        self._check("cuEventDestroy", self._quick.cuEventDestroy_v2(event))

    def record(self, event: int, stream: int) -> None:
        """Let the event come when the stream has got this far."""
        self._check("cuEventRecord", self._quick.cuEventRecord(event, stream))

    def has_come(self, event: int) -> bool:
        """Whether the event has come."""
        status = self._quick.cuEventQuery(event)
        self._check("cuEventQuery", 0 if status == _NOT_READY else status)
        return bool(status != _NOT_READY)

    def wait(self, event: int) -> None:
        """Return when the event has come."""
        self._check("cuEventSynchronize", self._slow.cuEventSynchronize(event))

    def _check(self, call: str, status: int) -> None:
        if status:
            name = ctypes.c_char_p()
            self._quick.cuGetErrorName(status, ctypes.byref(name))
            what = (name.value or b"an unknown error").decode()
            raise DeviceError(f"{self._device} failed: {call} gave {what}", "Look at nvidia-smi; try a new process")


_Compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def call_for_each(function: Any, addresses: Iterable[int]) -> None:
    """Call a function of C's with each address, without the interpreter's lock between.

    C's library has one function that calls another for each of many: `tdestroy` frees the nodes of a search tree.
    """
    quick, slow, root = ctypes.PyDLL(None), ctypes.CDLL(None), ctypes.c_void_p()
    quick.tsearch.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), _Compare]
    slow.tdestroy.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    by_address = _Compare(lambda one, other: (one > other) - (one < other))
    for address in addresses:
        quick.tsearch(address, ctypes.byref(root), by_address)
    slow.tdestroy(root, ctypes.cast(function, ctypes.c_void_p))
