"""Conversion of published Wan 2.1 weights to float16: resolve, plan, validate, convert.

Every floating tensor is stored as F16, integer tensors as they are. One pass over each source shard; the
next one is fetched meanwhile, and a fetched copy is dropped when it is done. A journal in the scratch folder
lets an interrupted conversion resume after the last whole shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wanstore._error_translation import plain_os_errors
from wanstore._files import hash_file, sync
from wanstore._formats._json import digest_of, to_json
from wanstore._formats._safetensors import ITEM_BYTES
from wanstore.conversion._plan import make_plan
from wanstore.errors import ConversionRefusedError, NotSupportedError
from wanstore.interfaces import ConversionPlan, Converted, Converter, OutputShard, Progress, Quiet, Source
from wanstore.manifest import (
    CONVERSION_NAME,
    ComponentRecord,
    ConversionRecord,
    FileEntry,
    TensorRecord,
    relative_rms_error,
)

if TYPE_CHECKING:  # it imports torch, which a plan does without
    from wanstore.conversion._stream import WrittenShard

_STORED_DTYPE = {"F64": "F16", "F32": "F16", "BF16": "F16", "F16": "F16"}
"""fp16 only: the decision that this library rests on."""


class Fp16Converter(Converter):
    """Stores every floating tensor as F16.

    `overflow="refuse"` refuses a source with values beyond 65504, `"clamp"` stores them as ±65504 and
    records how many. NaN and Inf are always refused.
    """

    name = "fp16"
    version = 1

    def __init__(self, *, overflow: Literal["refuse", "clamp"] = "refuse") -> None:
        if overflow not in ("refuse", "clamp"):  # it may come from the command line
            raise NotSupportedError(f"The fp16 converter has no overflow={overflow!r}", "Use refuse or clamp")
        self._overflow = overflow

    @property
    def options(self) -> dict[str, str]:
        return {"overflow": self._overflow}

    def plan(self, source: Source) -> ConversionPlan:
        return make_plan(source, _STORED_DTYPE)

    def convert(
        self, plan: ConversionPlan, target: Path, *, scratch: Path | None = None, progress: Progress | None = None
    ) -> Converted:
        from wanstore.conversion._copies import check_copies

        progress = progress or Quiet()
        workplace = scratch or target / ".scratch"
        with plain_os_errors(target):
            workplace.mkdir(parents=True, exist_ok=True)
            shards = self._convert_shards(plan, target, workplace, progress)
            _refuse_unfit(shards, clamp=self._overflow == "clamp")
            check_copies(plan, target, workplace / "source", progress, clamp=self._overflow == "clamp")
            files = [FileEntry(shard.path, shard.size_bytes, shard.sha256) for shard in shards]
            files += _write_small_files(plan, shards, target, workplace, progress)
            if scratch is None:
                shutil.rmtree(workplace)
        record = ConversionRecord(self.name, self.version, self.options, _sum_up_components(shards))
        return Converted(record, tuple(sorted(files, key=lambda entry: entry.path)))

    def _convert_shards(
        self, plan: ConversionPlan, target: Path, scratch: Path, progress: Progress
    ) -> list[WrittenShard]:
        from wanstore.conversion._journal import Journal
        from wanstore.conversion._stream import convert_shard

        plan_digest = digest_of({"plan": _fingerprint(plan), "options": self.options})
        journal = Journal(scratch / "journal.jsonl", plan_digest, progress)
        written = journal.whole_shards(plan.shards, target)
        if written:
            progress.message(f"Resuming: {len(written)} of {len(plan.shards)} shards are already converted")
        # The largest source file first: after the last has arrived, there is little left to convert.
        todo = sorted(
            (shard for shard in plan.shards if shard.path not in written),
            key=lambda shard: plan.source.files[shard.source_path],
            reverse=True,
        )
        progress.start("convert", sum(read.size_bytes for shard in todo for read in shard.reads))
        with _fetched_ahead(plan.source, todo, scratch / "source", progress) as fetched:
            for shard, file in fetched:
                (target / shard.path).parent.mkdir(parents=True, exist_ok=True)
                done = convert_shard(
                    shard,
                    file,
                    target / shard.path,
                    clamp=self._overflow == "clamp",
                    advance=lambda count: progress.advance("convert", count),
                )
                journal.add(done)
                written[shard.path] = done
        progress.finish("convert")
        return [written[shard.path] for shard in plan.shards]


@contextmanager
def _fetched_ahead(
    source: Source, shards: Sequence[OutputShard], folder: Path, progress: Progress
) -> Iterator[Iterator[tuple[OutputShard, Path]]]:
    """Each shard with its source file; one more file is fetched ahead, and each is released when done with.

    Both are asked for at once: a source can begin with the second while the first one's last parts arrive.
    """
    by_file = {path: list(group) for path, group in groupby(shards, key=lambda shard: shard.source_path)}
    paths = list(by_file)
    with ThreadPoolExecutor(2) as fetcher:

        def fetched() -> Iterator[tuple[OutputShard, Path]]:
            ahead: list[Future[Path]] = []
            for number, path in enumerate(paths):
                soon = paths[number + len(ahead) : number + 2]
                ahead += [fetcher.submit(source.fetch, later, folder, progress) for later in soon]
                file = ahead.pop(0).result()
                for shard in by_file[path]:
                    yield shard, file
                source.release(path, file)

        try:
            yield fetched()
        except BaseException:
            source.stop()
            fetcher.shutdown(wait=True, cancel_futures=True)
            raise


def _refuse_unfit(shards: Sequence[WrittenShard], *, clamp: bool) -> None:
    """Raise `ConversionRefusedError`, naming the tensors, if values did not survive the cast."""
    infinite = [name for shard in shards for name in shard.not_finite]
    if infinite:
        raise ConversionRefusedError(
            f"NaN or Inf in {_listed(infinite)}", "The source is damaged: fetch it again, or use another revision"
        )
    beyond = [
        f"{tensor.name} ({tensor.overflows} values, up to {tensor.max_abs:g})"
        for shard in shards
        for tensor in shard.tensors
        if tensor.overflows
    ]
    if beyond and not clamp:
        raise ConversionRefusedError(
            f"Values beyond 65504, which float16 cannot hold, in {_listed(beyond)}",
            "To store them as 65504 and have it recorded, use the converter's option overflow=clamp",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _fingerprint(plan: ConversionPlan) -> str:
    """Equal for plans that write the same from the same."""
    shards = [[s.path, s.source_path, hashlib.sha256(s.layout.header).hexdigest()] for s in plan.shards]
    return digest_of({"source": plan.record.commit, "shards": shards})


def _write_small_files(
    plan: ConversionPlan, shards: Sequence[WrittenShard], target: Path, scratch: Path, progress: Progress
) -> list[FileEntry]:
    """Copies, indexes and the record of single tensors; durable when this returns."""
    for path in plan.copies:
        file = plan.source.fetch(path, scratch / "source", progress)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / path)
        plan.source.release(path, file)
    tensors = {
        component: to_json([tensor for shard in group for tensor in shard.tensors])
        for component, group in groupby(shards, key=lambda shard: shard.component)
    }
    documents = {**plan.indexes, CONVERSION_NAME: {"schema_version": 1, "tensors": tensors}}
    for path, document in documents.items():
        (target / path).write_text(json.dumps(document, indent=2) + "\n")
    entries = []
    for path in [*plan.copies, *documents]:
        sync(target / path)
        entries.append(FileEntry(path, (target / path).stat().st_size, hash_file(target / path)))
    return entries


def _sum_up_components(shards: Sequence[WrittenShard]) -> dict[str, ComponentRecord]:
    """The tensor records summed up by component."""
    return {
        component: _sum_up([tensor for shard in group for tensor in shard.tensors])
        for component, group in groupby(shards, key=lambda shard: shard.component)
    }


def _sum_up(tensors: Sequence[TensorRecord]) -> ComponentRecord:
    """One component's tensor records as one record."""
    counts = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
    worst = max(tensors, key=lambda tensor: tensor.max_abs)
    return ComponentRecord(
        tensors=len(tensors),
        parameters=sum(counts.values()),
        source_bytes=sum(counts[tensor.name] * ITEM_BYTES[tensor.source_dtype] for tensor in tensors),
        stored_bytes=sum(counts[tensor.name] * ITEM_BYTES[tensor.stored_dtype] for tensor in tensors),
        source_dtypes=dict(Counter(tensor.source_dtype for tensor in tensors)),
        max_abs=worst.max_abs,
        max_abs_tensor=worst.name,
        overflows=sum(tensor.overflows for tensor in tensors),
        flushed_to_zero=sum(tensor.flushed_to_zero for tensor in tensors),
        subnormals=sum(tensor.subnormals for tensor in tensors),
        max_error=max(tensor.max_error for tensor in tensors),
        relative_rms_error=relative_rms_error(tensors),
    )
