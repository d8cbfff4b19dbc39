"""A server on 127.0.0.1 that answers with any bytes at all, as the Hub of the real client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from wanstore.conversion.hub import HubSource, Limits

LIMITS = Limits(
    attempts=2,
    backoff_seconds=0.01,
    connect_seconds=2,
    stall_seconds=0.4,
    pace_seconds=0.3,
    least_bytes_per_second=50_000,
    api_seconds=0.6,
)
COMMIT = "a" * 40
Answer = Callable[[str], bytes | Iterable[bytes]]


def whole(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer with its length."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode("latin-1") + body


@attrs.define
class HostileHub:
    """What it answers to a path, in pieces as they are sent, and the headers of all requests."""

    url: str
    closing: threading.Event
    answers: dict[str, Answer] = attrs.field(factory=dict)
    requests: list[tuple[str, dict[str, str]]] = attrs.field(factory=list)

    def answer(self, path: str) -> Iterable[bytes]:
        """Of the first beginning that fits; of a repo at a commit, with one small file, otherwise."""
        for beginning, answer in self.answers.items():
            if path.startswith(beginning):
                found = answer(path)
                return [found] if isinstance(found, bytes) else found
        if "/tree/" in path:
            entry = {"type": "file", "path": "model_index.json", "size": 2, "oid": "b" * 40}
            return [whole(json.dumps([entry]).encode())]
        return [whole(json.dumps({"sha": COMMIT}).encode())]

    def slowly(self, data: bytes, seconds: float = 0.05) -> Iterator[bytes]:
        """A byte at a time, for ever."""
        while True:
            for position in range(len(data)):
                if self.closing.wait(seconds):
                    return
                yield data[position : position + 1]

    def tree(self, entries: bytes, headers: str = "") -> None:
        """Answer the list of files with these bytes."""
        self.answers[f"/api/models/Wan-AI/Tiny/tree/{COMMIT}"] = lambda _: whole(entries, headers=headers)

    def source(self, **settings: Any) -> HubSource:
        return HubSource("Wan-AI/Tiny", limits=attrs.evolve(LIMITS, **settings))
