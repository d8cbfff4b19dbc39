"""The three abstract interfaces of wanstore, and the small types that they speak in.

A backend author subclasses one of them, registers it as an entry point (`wanstore.stores`, where the name is
the URL scheme, or `wanstore.converters`), and proves it with the suites in `wanstore.testing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:  # what the types below are made of: importing the interfaces stays light
    from wanstore._safetensors_format import Layout, Tensor
    from wanstore.manifest import ConversionRecord, FileEntry, Manifest, SourceRecord
    from wanstore.presets import Preset


class Progress(Protocol):
    """Hears how long work gets on. Calls may come from any thread."""

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        """A task of `total` units begins; a task that is already known begins anew."""

    def advance(self, task: str, amount: int) -> None:
        """`amount` more units of it are done; negative when work has to be done again."""

    def finish(self, task: str) -> None:
        """The task is over."""

    def message(self, text: str) -> None:
        """Something worth a line: a retry, a resumed run."""


class Quiet:
    """A `Progress` that says nothing."""

    def start(self, task: str, total: int, unit: str = "bytes") -> None: ...
    def advance(self, task: str, amount: int) -> None: ...
    def finish(self, task: str) -> None: ...
    def message(self, text: str) -> None: ...


@attrs.frozen
class VerifyReport:
    """What re-hashing a pipeline found. The three tuples name files, relative to the folder."""

    name: str
    files: int
    size_bytes: int
    seconds: float
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.damaged or self.missing or self.extra)


class Stage(Protocol):
    """A place in a store that no reader sees, to write a pipeline folder in."""

    @property
    def path(self) -> Path:
        """The folder that `seal` publishes."""

    @property
    def scratch(self) -> Path:
        """A folder beside it for what may be dropped; gone after `seal`."""

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest and publish the folder whole, in one step.

        Raises `AlreadyExistsError` when the name was taken meanwhile and the stage does not replace.
        """

    def discard(self) -> None:
        """Drop all that was written, resumable or not."""


class WeightStore(ABC):
    """A place that holds named pipeline folders. A name that is not there raises `NotFoundError`."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The address that `open_store` opens this store by."""

    @abstractmethod
    def list(self) -> list[Manifest]:
        """The sealed pipelines, by name. Nothing unsealed, half-written or foreign is in it."""

    @abstractmethod
    def manifest(self, name: str) -> Manifest:
        """The manifest of `name`. Raises `DamagedError` when it cannot be read."""

    @abstractmethod
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> AbstractContextManager[Stage]:
        """A place to write the pipeline `name`; `stage.seal(manifest)` publishes it.

        Leaving the block unsealed discards what was written. With a `resume` key the work is kept instead
        when the block is left by an error, or its process dies, and the next stage of the same name and key
        finds it in place. Raises `AlreadyExistsError` when `name` is taken and not `replace`, `BusyError`
        when another live run stages it.
        """

    @abstractmethod
    def local_path(self, name: str) -> Path:
        """A readable folder with the pipeline `name`; a remote store fetches it first."""

    @abstractmethod
    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        """Hash every file again, and name each that is damaged, missing or extra."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove the pipeline `name`, damaged or not. A reader sees all of it or nothing of it."""

    def sweep(self) -> None:
        """Drop what dead runs left behind; what live runs are writing stays. Nothing to do by default."""


class Source(ABC):
    """Published weights at one fixed state. Nothing large moves before `fetch`."""

    record: SourceRecord
    files: dict[str, int]
    """Every file of the source: its relative path, and its size in bytes."""

    @abstractmethod
    def head(self, path: str, size: int) -> bytes:
        """The first `size` bytes of a file; fewer only when the file is shorter. Raises `SourceError`."""

    @abstractmethod
    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        """A local file with the whole, checked content; downloads go below the folder `into`, resumably.

        `progress` hears a task named `path`. Safe to call from several threads, for different paths.
        """

    def release(self, path: str, fetched: Path) -> None:
        """The fetched file is no longer needed. A copy made by `fetch` is deleted, an original is not."""

    def stop(self) -> None:
        """Make fetches that are under way in other threads end soon, with an error; what they have stays."""


@attrs.frozen
class OutputShard:
    """One file to write: `layout` says where each tensor goes, `reads` where each comes from in `source_path`."""

    component: str
    path: str
    source_path: str
    reads: tuple[Tensor, ...]
    layout: Layout


@attrs.frozen
class ConversionPlan:
    """All that a conversion writes: converted shards, small files copied, and indexes made anew.

    `source_indexes` are read in planning and not copied: only a kept source needs them.
    """

    source: Source
    shards: tuple[OutputShard, ...]
    copies: tuple[str, ...]
    indexes: dict[str, dict[str, Any]]
    source_indexes: tuple[str, ...]
    configs: dict[str, dict[str, Any]]

    @property
    def record(self) -> SourceRecord:
        return self.source.record

    @property
    def source_bytes(self) -> int:
        """Bytes of the source files that hold weights."""
        return sum(self.source.files[path] for path in self.source_paths)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the converted shards."""
        return sum(shard.layout.file_bytes for shard in self.shards)

    @property
    def source_paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shard.source_path for shard in self.shards))

    @property
    def peak_bytes(self) -> int:
        """Most disk space used at once, if the source has to be downloaded: the output and two source shards."""
        two = sorted((self.source.files[path] for path in self.source_paths), reverse=True)[:2]
        return self.stored_bytes + sum(two) + sum(self.source.files[path] for path in self.copies)


@attrs.frozen
class Converted:
    """What a conversion wrote: its record, and every file of the target."""

    record: ConversionRecord
    files: tuple[FileEntry, ...]


class Converter(ABC):
    """Turns published weights into a stored pipeline folder."""

    name: str
    version: int

    @property
    def options(self) -> dict[str, str]:
        """The options that change what is written: with the source and `version` they make the recipe."""
        return {}

    @abstractmethod
    def plan(self, source: Source) -> ConversionPlan:
        """Read headers only; say what will be written. Raises `SourceError` for all that is wrong by then."""

    @abstractmethod
    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        """Write the planned folder into `target`; the result names every file with its hash, taken in passing.

        With a `scratch` folder that outlives an interruption, an equal plan goes on where the last call
        stopped. Raises `ConversionRefusedError` when values would not survive.
        """


class Report(Protocol):
    """What a benchmark found; `wanstore.benchmarking.report.BenchmarkReport` is wanstore's own."""

    @property
    def safe_preset(self) -> str | None:
        """The preset that degraded mode falls back to; None if none qualifies."""

    def to_json(self) -> str:
        """The whole report as a JSON document."""


class Benchmarker(ABC):
    """Measures what presets cost."""

    @abstractmethod
    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> Report:
        """Run each preset; a preset that fails is a row of the report, not an error."""
