"""What an app's containers print, for the client to follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator


class Log:
    """Lines that are added by one side and followed by another, in one event loop."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._news = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._tell()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._tell()

    async def lines_after(self, number: int) -> AsyncIterator[tuple[int, str]]:
        """Each line with its number, from `number` on, until the log ends."""
        while True:
            news = self._news
            while number < len(self._lines):
                number += 1
                yield number, self._lines[number - 1]
            if self._ended:
                return
            await news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
