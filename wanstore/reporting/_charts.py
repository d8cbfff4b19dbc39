"""Charts of bars: a table whose rows have a drawing between a name and a figure, so that text stays text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from wanstore.reporting._html import Html, element, scrolling

_WIDTH, _HEIGHT = 1000, 20
"""Of a drawing, in units that are stretched to the room there is."""


@attrs.frozen
class Part:
    """A part of a bar: its color, by the name that the style has for it, and from where to where it goes."""

    color: str
    start: float
    end: float


@attrs.frozen
class Bar:
    """A row of a chart; `figure` is what stands beside the bar."""

    name: str
    figure: str
    parts: Sequence[Part]


def chart(
    title: str, bars: Sequence[Bar], *, key: Mapping[str, str] | None = None, limits: Iterable[float] = ()
) -> Html:
    """Bars from 0 to the largest end, each limit a line through all of them; `key` says what colors stand for."""
    end = max((part.end for bar in bars for part in bar.parts if math.isfinite(part.end)), default=0.0)
    lines = [Part("limit", limit - end / 400, limit + end / 400) for limit in limits if limit < end]
    rows = [
        element(
            "tr",
            element("th", bar.name, scope="row"),
            element("td", _drawing([*bar.parts, *lines], end)),
            element("td", bar.figure),
        )
        for bar in bars
    ]
    drawn = scrolling(title, element("tbody", *rows), class_="chart")
    return Html(_key(key) + drawn) if key else drawn


def _drawing(parts: Iterable[Part], end: float) -> Html:
    boxes = []
    for part in parts:
        left, right = _place(part.start, end), _place(part.end, end)
        top, height = (0, _HEIGHT) if part.color == "limit" else (3, _HEIGHT - 6)
        if right > left:
            boxes.append(
                f'<rect class="{part.color}" x="{left:.2f}" y="{top}" width="{right - left:.2f}" height="{height}"/>'
            )
    box = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
    return Html(f"{box}{''.join(boxes)}</svg>")


def _place(value: float, end: float) -> float:
    """Where a value lies in the drawing; a file may hold any number, so what is none lies at 0."""
    share = value / end if end > 0 else 0.0
    return _WIDTH * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0


def _key(key: Mapping[str, str]) -> Html:
    sample = '<svg viewBox="0 0 1 1" aria-hidden="true"><rect class="{}" width="1" height="1"/></svg>'
    return element(
        "p", *(element("span", Html(sample.format(color)), text) for color, text in key.items()), class_="key"
    )
