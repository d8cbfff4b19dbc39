"""NVIDIA's checkpoint of a process's device state: its memory goes to the host, and comes back.

CUDA Driver API, "CUDA Checkpointing": https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html
"""

from __future__ import annotations

from typing import Any

LOCK_MILLISECONDS = 20_000


class CudaCheckpoint:
    """The four steps for another process of this user. Each returns when it is done, or raises `RuntimeError`."""

    def __init__(self, pid: int) -> None:
        from cuda.bindings import driver

        self._driver, self._pid = driver, pid
        self._check(driver.cuInit(0))

    def lock(self) -> None:
        """Let no further call of the process through, and wait for those under way."""
        options = self._driver.CUcheckpointLockArgs()
        options.timeoutMs = LOCK_MILLISECONDS
        self._check(self._driver.cuCheckpointProcessLock(self._pid, options))

    def checkpoint(self) -> None:
        """Device memory goes to the host, and the device is let go."""
        self._check(self._driver.cuCheckpointProcessCheckpoint(self._pid, None))

    def restore(self) -> None:
        self._check(self._driver.cuCheckpointProcessRestore(self._pid, None))

    def unlock(self) -> None:
        self._check(self._driver.cuCheckpointProcessUnlock(self._pid, None))

    def _check(self, answer: tuple[Any, ...]) -> None:
        status = answer[0]
        if int(status) != 0:
            raise RuntimeError(f"the driver says {status.name}")
