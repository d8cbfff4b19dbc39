"""Text as people may see it, and figures as they read them."""

from __future__ import annotations


def escaped(text: str) -> str:
    """`text` with what could steer a terminal, or cannot be encoded, as escape sequences."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def human_bytes(count: int) -> str:
    """`count` bytes with a decimal unit: 14.45 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
