"""What moving weights to a device took."""

from __future__ import annotations

import attrs


@attrs.frozen
class TransferRecord:
    """What moving the weights took: `seconds` from its beginning to its end.

    `uncached_bytes` were not in page cache. `read_seconds` and `wait_seconds` are an average thread's: reading,
    and waiting for the device to have copied. `prepare_seconds` went by before the first byte was asked for:
    the device's own start, and allocation.
    """

    size_bytes: int
    uncached_bytes: int
    seconds: float
    prepare_seconds: float
    read_seconds: float
    wait_seconds: float

    @property
    def bound_by(self) -> str:
        """What the transfer itself waited for most: `disk`, `page cache`, `PCIe` or `preparation`."""
        slowest = max(self.prepare_seconds, self.read_seconds, self.wait_seconds)
        if slowest == self.prepare_seconds:
            return "preparation"
        if slowest == self.wait_seconds:
            return "PCIe"
        return "disk" if 2 * self.uncached_bytes > self.size_bytes else "page cache"
