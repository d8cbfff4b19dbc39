"""What the NVIDIA driver knows of a GPU and torch does not: all memory in use, and the energy spent. By NVML.

nvidia-ml-py is optional, and not every GPU reports everything: what is unknown is None.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_SAMPLE_SECONDS = 0.05


class DeviceWatch:
    """Samples one GPU's memory every 50 ms while `run` runs in its own thread."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._over = threading.Event()
        self._peak_bytes = 0

    @property
    def peak_gib(self) -> float | None:
        """The most memory in use that was seen, whatever process had it."""
        self._sample()
        return self._peak_bytes / 2**30 if self._peak_bytes else None

    def joules(self) -> float | None:
        """The GPU's own count of the energy that it spent since the driver was loaded."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError:  # GPUs before Volta don't count it
            return None

    def run(self) -> None:
        """Look until `stop` is called."""
        while not self._over.wait(_SAMPLE_SECONDS):
            self._sample()

    def stop(self) -> None:
        """End `run`."""
        self._over.set()

    def _sample(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._peak_bytes = max(self._peak_bytes, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)


@contextlib.contextmanager
def watch_device(device: Any) -> Iterator[DeviceWatch | None]:
    """Watch the GPU that torch calls `device` while the block runs; None where NVML or the GPU is missing."""
    nvml = _nvml()
    handle = _handle(nvml, device) if nvml and device.type == "cuda" else None
    if handle is None:
        yield None
        return
    watch = DeviceWatch(nvml, handle)
    thread = threading.Thread(target=watch.run, name="wanstore-nvml", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()


def driver_version() -> str | None:
    """Of the NVIDIA driver."""
    nvml = _nvml()
    return str(nvml.nvmlSystemGetDriverVersion()) if nvml else None


def _handle(nvml: Any, device: Any) -> Any:
    """NVML numbers all GPUs, torch only the visible ones: the UUID is what both know."""
    import torch

    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except nvml.NVMLError:
        return None


def _nvml() -> Any:
    """The module, ready to be asked; None without it or without a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
