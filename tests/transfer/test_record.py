"""What bound a transfer, by what is known of it."""

from __future__ import annotations

import pytest

from wanstore.transfer._record import TransferRecord


def record(**fields: float | None) -> TransferRecord:
    usual = {"prepare_seconds": 0.5, "read_seconds": 2.0, "wait_seconds": 0.1, "seconds": 5.5, "uncached_bytes": 0}
    return TransferRecord(size_bytes=14_000_000_000, **{**usual, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "bound_by"),
    [
        ({}, "page cache"),
        ({"uncached_bytes": 14_000_000_000}, "disk"),
        ({"wait_seconds": 3.0}, "PCIe"),
        ({"prepare_seconds": 4.0}, "preparation"),
        ({"uncached_bytes": None}, "disk"),
        ({"uncached_bytes": None, "seconds": 2.5}, "page cache"),
    ],
)
def test_what_was_slowest_bound_it(fields: dict[str, float | None], bound_by: str) -> None:
    """Where nobody can tell what was in page cache, the rate tells: 14 GB in 5 s are a disk's, in 2 s are not."""
    assert record(**fields).bound_by == bound_by
