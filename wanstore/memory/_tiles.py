"""How a frame is cut into tiles that can be decoded one after another without a seam."""

from __future__ import annotations

import attrs

HALO = 13
"""Latent pixels around a tile that its pixels depend on.

Each 3 × 3 convolution after the VAE's attention reaches one pixel further. With six of them at each of four scales,
one in each upsampling and one at the end it is 6 + 0.5 + 3 + 0.25 + 1.5 + 0.125 + 0.75 + 0.125 = 12.25.
"""

Span = tuple[int, int]


@attrs.frozen
class Tile:
    """A part of the frame, as (first, stop) rows and columns of latent pixels, and what is decoded for it."""

    rows: Span
    columns: Span
    around_rows: Span
    around_columns: Span

    @property
    def pixels(self) -> int:
        """Latent pixels that are decoded for it."""
        (top, bottom), (left, right) = self.around_rows, self.around_columns
        return (bottom - top) * (right - left)


def cut(height: int, width: int, count: int) -> list[Tile]:
    """`count` tiles of height × width latent pixels, in the rows and columns that decode the fewest pixels."""
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min((_grid(height, width, *grid) for grid in grids), key=lambda tiles: max(tile.pixels for tile in tiles))


def _grid(height: int, width: int, rows: int, columns: int) -> list[Tile]:
    return [
        Tile(row, column, _around(row, height), _around(column, width))
        for row in _spans(height, rows)
        for column in _spans(width, columns)
    ]


def _spans(size: int, count: int) -> list[Span]:
    return [(number * size // count, (number + 1) * size // count) for number in range(count)]


def _around(span: Span, size: int) -> Span:
    return max(span[0] - HALO, 0), min(span[1] + HALO, size)
