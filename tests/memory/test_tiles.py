"""Tiles cover the frame once, and what is decoded for each reaches far enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanstore.memory._tiles import HALO, cut

sides = st.integers(8, 100)
counts = st.sampled_from([1, 2, 4, 8])


@given(sides, sides, counts)
def test_each_pixel_is_in_one_tile(height: int, width: int, count: int) -> None:
    """No gap and no overlap."""
    tiles = cut(height, width, count)
    assert len(tiles) == count
    covered = [(row, column) for tile in tiles for row in range(*tile.rows) for column in range(*tile.columns)]
    assert len(covered) == len(set(covered)) == height * width


@given(sides, sides, counts)
def test_around_each_is_the_halo_up_to_the_frames_edge(height: int, width: int, count: int) -> None:
    """Beyond the edge are zeros, for the whole frame as well."""
    for tile in cut(height, width, count):
        for (first, stop), (start, end), size in (
            (tile.rows, tile.around_rows, height),
            (tile.columns, tile.around_columns, width),
        ):
            assert (start, end) == (max(0, first - HALO), min(size, stop + HALO))
        rows, columns = tile.around_rows, tile.around_columns
        assert tile.pixels == (rows[1] - rows[0]) * (columns[1] - columns[0])


@pytest.mark.parametrize(
    ("height", "width", "count", "grid"),
    [(60, 104, 2, (1, 2)), (104, 60, 2, (2, 1)), (60, 60, 2, (1, 2)), (60, 104, 4, (2, 2)), (34, 68, 4, (2, 2))],
)
def test_as_little_as_can_be_is_decoded_twice(height: int, width: int, count: int, grid: tuple[int, int]) -> None:
    """The longer edge is cut first, and each edge once before one is cut twice."""
    tiles = cut(height, width, count)
    assert (len({tile.rows for tile in tiles}), len({tile.columns for tile in tiles})) == grid
