"""A source whose first file is already on its way when the conversion asks for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from wanstore._formats._safetensors import Tensor
from wanstore.interfaces import Progress, Source

_AGAIN_SECONDS = 0.1


class HeadStart(Source):
    """`source`, of which `path` is fetched into `folder` from the beginning of the block on.

    Who fetches that file waits for it, and gets the error that it ended with. After the block nothing of it goes on.
    """

    def __init__(self, source: Source, path: str, folder: Path, progress: Progress) -> None:
        self.record, self.files = source.record, source.files
        self._source, self._path, self._folder, self._progress = source, path, folder, progress

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1)
        self._first = self._thread.submit(self._source.fetch, self._path, self._folder, self._progress)
        self._ahead = {self._path: self._first}
        return self

    def __exit__(self, *_: object) -> None:
        while not self._first.done():
            self._source.stop()  # not only once: the fetch may have been about to begin
            wait([self._first], _AGAIN_SECONDS)
        self._thread.shutdown()

    def head(self, path: str, size: int) -> bytes:
        return self._source.head(path, size)

    def tensors(self, path: str) -> tuple[Tensor, ...]:
        return self._source.tensors(path)

    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        # Once: whoever fetches it after it was released needs it anew.
        first = self._ahead.pop(path, None)
        return first.result() if first else self._source.fetch(path, into, progress)

    def release(self, path: str, fetched: Path) -> None:
        self._source.release(path, fetched)

    def stop(self) -> None:
        self._source.stop()
