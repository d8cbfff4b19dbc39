"""What moving weights to a device took."""

from __future__ import annotations

import attrs

PAGE_CACHE_BYTES_A_SECOND = 3e9
"""Two cores copy more than this out of page cache, and a Modal Volume gives less."""


@attrs.frozen
class TransferRecord:
    """What moving the weights took: `seconds` from its beginning to its end.

    `uncached_bytes` were not in page cache; None where nobody can tell, as under gVisor. `read_seconds` and
    `wait_seconds` are an average thread's: reading, and waiting for the device to have copied. `prepare_seconds` went
    by before the first byte was asked for: the device's own start, and allocation. `way` is how bytes reached a GPU:
    from registered page cache, or through pinned memory; "" elsewhere. What was `streamed` came over a network.
    """

    size_bytes: int
    uncached_bytes: int | None
    seconds: float
    prepare_seconds: float
    read_seconds: float
    wait_seconds: float
    way: str = ""
    streamed: bool = False

    @property
    def bound_by(self) -> str:
        """What the transfer itself waited for most: `network`, `disk`, `page cache`, `PCIe` or `preparation`."""
        slowest = max(self.prepare_seconds, self.read_seconds, self.wait_seconds)
        if slowest == self.prepare_seconds:
            return "preparation"
        if slowest == self.wait_seconds:
            return "PCIe"
        if self.streamed:
            return "network"
        return "disk" if self.came_from_disk else "page cache"

    @property
    def came_from_disk(self) -> bool:
        """Whether most bytes were not in page cache; where nobody can tell, by the rate at which they came."""
        if self.uncached_bytes is None:
            moving = self.seconds - self.prepare_seconds
            return self.size_bytes < PAGE_CACHE_BYTES_A_SECOND * moving
        return 2 * self.uncached_bytes > self.size_bytes
