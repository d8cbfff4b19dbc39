"""HTML whose text is escaped by the way it is made."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from wanstore.display._manifest import PlainTable
from wanstore.display._text import escaped

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may fetch and run of the page: nothing but its own style."""


class Html(str):
    """Finished HTML. Any other string is text."""

    __slots__ = ()


def element(name: str, *inside: str, **attributes: str) -> Html:
    """An element. What is inside is text unless it is `Html`; attributes may be called `class_` and `aria_label`."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_safe(value)}"' for key, value in attributes.items())
    body = "".join(part if isinstance(part, Html) else _safe(part) for part in inside)
    return Html(f"<{name}{given}>{body}</{name}>")


def _safe(text: str) -> str:
    """Text as it may stand in HTML; what cannot be seen, or would turn the text around, as an escape sequence."""
    return escape(escaped(text))


def table(plain: PlainTable) -> Html:
    """A table of rows, or of facts if no column has a name."""
    kinds = [{"class_": "number"} if name.startswith("#") else {} for name in plain.columns]
    names = [name.lstrip("#") for name in plain.columns]
    rows = [
        element("tr", *(element("td", cell, **kind) for cell, kind in zip(cells, kinds, strict=True)))
        for cells in plain.rows
    ]
    head = element("tr", *(element("th", name, scope="col", **kind) for name, kind in zip(names, kinds, strict=True)))
    if not any(names):
        return scrolling(plain.title, element("tbody", *rows), class_="facts")
    return scrolling(plain.title, element("thead", head), element("tbody", *rows))


def scrolling(title: str, *parts: Html, **attributes: str) -> Html:
    """A table made of these parts that scrolls by itself, by keys too, where it is wider than the page."""
    whole = element("table", *parts, **attributes)
    return element("div", whole, class_="wide", role="region", tabindex="0", aria_label=title)


def document(title: str, body: Sequence[Html]) -> str:
    """The whole page, with its style in it."""
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", Html(_STYLE.read_text())),
    ]
    page = element("html", element("head", *head), Html("\n"), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"
