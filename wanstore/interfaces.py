"""The three abstract interfaces of wanstore: `WeightStore`, `Converter` and `Benchmarker`, and the types that they use.

To add a backend, subclass one of them and register it as an entry point. What is registered, a class or a function, is
called with:

| group | arguments | asked for by |
| --- | --- | --- |
| `wanstore.stores` | the URL; the entry point's name is its scheme | `open_store(URL)`, `--store URL` |
| `wanstore.converters` | options, as keywords whose values are strings | `--converter NAME --converter-option K=V` |
| `wanstore.benchmarkers` | the pipeline's folder, and keywords: see `Benchmarker` | `--benchmarker NAME` |

Then prove it with the conformance suite in `wanstore.testing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from wanstore._files import read_blocks
from wanstore.errors import NotSupportedError

if TYPE_CHECKING:  # what the types below are made of: importing the interfaces stays light
    from wanstore._formats._safetensors import FileLayout, Tensor
    from wanstore.manifest import ConversionRecord, FileEntry, Manifest, SourceRecord
    from wanstore.presets import Preset


class Progress(Protocol):
    """Receives progress updates. Calls may come from any thread."""

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        """A task of `total` units begins. A task that is already known starts over."""

    def advance(self, task: str, amount: int) -> None:
        """`amount` more units are done. It is negative when work has to be done again."""

    def finish(self, task: str) -> None:
        """The task is done."""

    def message(self, text: str) -> None:
        """Something worth a line, such as a retry or a resumed run."""


class Quiet:
    """A `Progress` that ignores every update."""

    def start(self, task: str, total: int, unit: str = "bytes") -> None: ...
    def advance(self, task: str, amount: int) -> None: ...
    def finish(self, task: str) -> None: ...
    def message(self, text: str) -> None: ...


@attrs.frozen
class VerifyReport:
    """What hashing a pipeline again found.

    Attributes:
        name: the pipeline.
        files: how many files the manifest lists.
        size_bytes: their size.
        seconds: how long it took.
        damaged: files whose size or hash differs, relative to the folder.
        missing: files that the manifest lists and the folder lacks.
        extra: files that the manifest does not list.
    """

    name: str
    files: int
    size_bytes: int
    seconds: float
    damaged: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the pipeline is whole."""
        return not (self.damaged or self.missing or self.extra)


@attrs.frozen
class Unreadable:
    """A folder of a store that has a manifest, and cannot be read.

    Attributes:
        name: the folder's name, which need not be one that a pipeline may have.
        reason: why it cannot be read, in one line.
    """

    name: str
    reason: str


@attrs.frozen
class Listing:
    """What a store holds, both sorted by name.

    Attributes:
        pipelines: the sealed pipelines.
        unreadable: those whose manifest is damaged, of a newer schema, a link, or closed to this user.
    """

    pipelines: tuple[Manifest, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


class Stage(Protocol):
    """A staging area: a place in a store that no reader sees, where a pipeline folder is written."""

    @property
    def path(self) -> Path:
        """The folder that `seal` publishes."""

    @property
    def scratch(self) -> Path:
        """A folder beside it for temporary files. `seal` removes it."""

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest, and publish the folder whole in one step.

        Raises `DamagedError` if the folder does not hold exactly the manifest's files in their sizes, and
        `AlreadyExistsError` if the name was taken meanwhile and the staging area was not opened to replace. What was
        stored before is then still there.
        """

    def discard(self) -> None:
        """Delete everything that was written, resumable or not."""


@runtime_checkable
class FileStage(Stage, Protocol):
    """A staging area that also takes files one by one, for stores that need no folder on a disk for them. Optional.

    `wanstore.copy` uses it where it is there. Several threads may call both methods at once. `seal` publishes these
    files together with those below `path`.
    """

    def holds(self, entry: FileEntry) -> bool:
        """Whether an interrupted run that this one resumes has written the file, whole and with this hash."""

    def write(self, entry: FileEntry, blocks: Callable[[], Iterator[bytes | memoryview]]) -> None:
        """Write the file at `entry.path` from the blocks that `blocks()` gives, in order.

        A block may be overwritten when the next one is asked for. If writing fails and is tried again, so is `blocks`.
        The iterator compares size and hash itself: if it raises, the error is passed on and nothing is kept.
        """


class Streamed(Protocol):
    """A pipeline whose weights are read where they are stored."""

    @property
    def folder(self) -> Path:
        """A folder called as the pipeline: its manifest, its small files, and of each weight file header and length."""

    @property
    def address(self) -> str:
        """The store's URL and the name."""

    def read(self, file: Path, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of a weight file in `folder`. Each file's ranges begin after its header, and follow.

        Several threads may ask, if those that ask for earlier ranges of the same file did so before.
        """

    def check(self) -> None:
        """All was read: raise `DamagedError` unless it was what the manifest says."""

    def stop(self) -> None:
        """Make calls of `read` in other threads end soon, with an error."""


class WeightStore(ABC):
    """A place that holds named pipeline folders.

    Every method that takes a name raises `NotFoundError` if there is no such pipeline, and `InvalidNameError` if it
    cannot be a name.
    """

    progress: Progress = Quiet()
    """Hears of what the store moves by itself, such as downloads into a cache. wanstore's functions set it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.url}>"

    @property
    @abstractmethod
    def url(self) -> str:
        """The address that `open_store` opens this store by, in any process."""

    @abstractmethod
    def list(self) -> Listing:
        """The sealed pipelines, and those that cannot be read, with the reason: they hide none of the others.

        Both are sorted by name. A store that was never written to is empty. Folders without a manifest are left out.
        """

    @abstractmethod
    def manifest(self, name: str) -> Manifest:
        """The manifest of `name`. Raises `DamagedError` if it cannot be read."""

    @abstractmethod
    def stage(self, name: str, *, replace: bool = False, resume: str | None = None) -> AbstractContextManager[Stage]:
        """Open a staging area for the pipeline `name`; `seal` publishes it.

        Leaving the block without sealing discards what was written. With a `resume` key, the work is kept if the block
        is left by an error or the process dies. The next call with the same name and key finds it.

        Raises `AlreadyExistsError` if `name` is taken and not `replace`, and `BusyError` if another running process
        has a staging area of that name.
        """

    @abstractmethod
    def local_path(self, name: str) -> Path:
        """A readable folder with the pipeline and its `wanstore.json`. It is called `name` too.

        A remote store downloads it first. A copy that is kept has to follow when the pipeline is replaced.
        """

    @abstractmethod
    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        """Hash every file again, and name each one that is damaged, missing or extra, sorted.

        Raises `DamagedError` if the manifest cannot be read.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete the pipeline `name`, damaged or not. A reader sees all of it or nothing of it."""

    def reader(self, name: str) -> Callable[[str], Iterator[bytes | memoryview]]:
        """A function that reads one file of the pipeline, by its path in the manifest, in order and block by block.

        Optional: by default it reads below `local_path`. A remote store that overrides it is copied from without a copy
        on this machine's disk. All files are those of the pipeline that is sealed now, and a file that is gone raises
        `FileNotFoundError`. Hashes are compared by the caller. A block may be overwritten when the next one is asked
        for. Several threads may read at once.
        """
        folder = self.local_path(name)
        return lambda path: read_blocks(folder / path)

    def streamed(self, name: str) -> AbstractContextManager[Streamed | None]:
        """The pipeline without a copy of its weights here; None from a store that has no such way. Optional."""
        return nullcontext()

    def free_bytes(self) -> int | None:
        """Room for what a stage writes; None if nobody can tell. Optional. Creates nothing."""
        return None

    def sweep(self) -> None:
        """Delete what dead processes left behind, and leave alone what running ones write. Optional."""


class Source(ABC):
    """Published weights in one fixed state. Nothing large is transferred before `fetch`.

    Attributes:
        record: where the weights come from, as the manifest records it.
        files: the size in bytes of every file, by its relative path.
    """

    record: SourceRecord
    files: dict[str, int]

    @abstractmethod
    def head(self, path: str, size: int) -> bytes:
        """The first `size` bytes of a file, fewer only if the file is shorter. Raises `SourceError`."""

    def tail(self, path: str, size: int) -> bytes:
        """The last `size` bytes of a file, likewise. Optional: only weights that are no safetensors need it."""
        raise NotSupportedError(f"{self.record.location} cannot be read from the end of {path}")

    def tensors(self, path: str) -> tuple[Tensor, ...]:
        """The tensors of a weight file, with where their bytes are in the file that `fetch` returns.

        They are what its safetensors header says, unless the source overrides this. Raises `ValueError` that says what
        is wrong with the file.
        """
        from wanstore._formats._safetensors import read_header

        return read_header(lambda size: self.head(path, size), self.files[path])

    @abstractmethod
    def fetch(self, path: str, into: Path, progress: Progress) -> Path:
        """Return a local file with the whole, checked content. A download goes below the folder `into`, and can resume.

        `progress` receives a task named `path`. Several threads may fetch different paths at once.
        """

    def release(self, path: str, fetched: Path) -> None:
        """The fetched file is no longer needed: delete it if it is a copy made by `fetch`, but not an original."""

    def stop(self) -> None:
        """Make fetches in other threads end soon, with an error. They keep what they have downloaded."""


@attrs.frozen
class OutputShard:
    """One weight file to write.

    Attributes:
        component: the component that it belongs to.
        path: where it goes, relative to the pipeline folder.
        source_path: the source file that it is made from.
        reads: the tensors to read from `source_path`, in the order of `layout`.
        layout: where each tensor goes in the new file, and its header.
    """

    component: str
    path: str
    source_path: str
    reads: tuple[Tensor, ...]
    layout: FileLayout


@attrs.frozen
class ConversionPlan:
    """Everything that a conversion will write.

    Attributes:
        source: what is converted.
        shards: the weight files to write.
        copies: small files that are copied unchanged.
        indexes: indexes of the new shards, by path.
        source_indexes: indexes of the source, which only a kept source needs.
        configs: each component's config.json.
        copied_tensors: tensors that the source holds twice, by source path, with the name that they are stored by. They
            are not stored; `convert` must refuse them if they differ.
    """

    source: Source
    shards: tuple[OutputShard, ...]
    copies: tuple[str, ...]
    indexes: dict[str, dict[str, Any]]
    source_indexes: tuple[str, ...]
    configs: dict[str, dict[str, Any]]
    copied_tensors: tuple[tuple[str, Tensor, str], ...] = ()

    @property
    def record(self) -> SourceRecord:
        """Where the weights come from."""
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
        """The source files that hold weights, each once."""
        return tuple(dict.fromkeys(shard.source_path for shard in self.shards))

    @property
    def peak_bytes(self) -> int:
        """The most disk space in use at once if the source has to be downloaded: the output and two source shards."""
        two = sorted((self.source.files[path] for path in self.source_paths), reverse=True)[:2]
        return self.stored_bytes + sum(two) + sum(self.source.files[path] for path in self.copies)


@attrs.frozen
class Converted:
    """What a conversion wrote: its record, and every file of the target."""

    record: ConversionRecord
    files: tuple[FileEntry, ...]


class Converter(ABC):
    """Turns published weights into a stored pipeline folder.

    Attributes:
        name: the name that the manifest records.
        version: raise it whenever the bytes that are written change. It is part of the recipe.
    """

    name: str
    version: int

    @property
    def options(self) -> dict[str, str]:
        """The options that change what is written. With the source and `version` they make the recipe."""
        return {}

    @abstractmethod
    def plan(self, source: Source) -> ConversionPlan:
        """Read headers only, and return what will be written. Raises `SourceError` for every fault that they show."""

    @abstractmethod
    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        """Write the planned folder into `target`, and return every file with the hash that was computed while writing.

        With a `scratch` folder that outlives an interruption, a call with an equal plan resumes where the last one
        stopped. Raises `ConversionRefusedError` if values would not survive.
        """


class Report(Protocol):
    """What a benchmark found. `wanstore.benchmarking.report.BenchmarkReport` is one."""

    @property
    def safe_preset(self) -> str | None:
        """The preset that degraded mode falls back to; None if none qualifies."""

    def to_json(self) -> str:
        """The whole report as a JSON object.

        It has `safe_preset`, and `rows`: one for each preset that was measured, in order. A row has at least `preset`,
        an object with its `name`, and `status`, which is `ok` or says how it failed; `reason` says more. Any other keys
        are the benchmarker's own. `wanstore bench` shows those that are numbers or text as columns.
        """


class Benchmarker(ABC):
    """Measures what presets cost.

    `wanstore bench --benchmarker NAME` calls what is registered in the group `wanstore.benchmarkers` with the local
    folder of the sealed pipeline, a `Path`. Options of the command that were given come as keywords, by the names and
    types that `wanstore.bench` has for them: `device`, `rounds`, `warmup`, `steps`, `memory_gib`, `dtype`, `memory`,
    `attention`, `compile`, `timeout_seconds`, `keep_clips`, `reference`, `fresh`. It need not take them: whoever gives
    one that it does not take gets an error.
    """

    @abstractmethod
    def run(self, presets: Sequence[Preset], *, progress: Progress | None = None) -> Report:
        """Measure each preset, in order. A preset that fails is a row of the report, not an error."""
