"""The journal of a conversion: which shards are whole, so that an interrupted run can resume after them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from wanstore._error_translation import first_line
from wanstore._files import hash_file, read_small_file, remove_tree, sync
from wanstore._formats._json import digest_of, from_json, to_json
from wanstore.conversion._stream import WrittenShard
from wanstore.interfaces import OutputShard, Progress

_MAX_BYTES = 64 << 20


class Journal:
    """One line for each whole shard; the first line names the plan. One of another plan, or damaged, is dropped.

    A line's own hash tells damage: the statistics in it go into the manifest, and nothing else could check them.
    """

    def __init__(self, path: Path, plan_digest: str, progress: Progress) -> None:
        self._path = path
        self._noted: list[WrittenShard] = []
        head = json.dumps({"plan": plan_digest})
        lines = [head]
        try:
            found = read_small_file(path, _MAX_BYTES).decode().split("\n")
            if found[0] == head:
                # A run that was killed while it wrote leaves half a line: the next one must not be glued to it.
                lines = found[:-1]
                self._noted = [_shard_of(line) for line in lines[1:]]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError) as error:
            progress.message(f"The journal of an earlier run is damaged ({first_line(error)}): converting all anew")
            remove_tree(path)
            lines, self._noted = [head], []
        path.write_text("".join(line + "\n" for line in lines))

    def add(self, shard: WrittenShard) -> None:
        """Note a shard whose bytes are on the disk."""
        document = to_json(shard)
        with self._path.open("a") as file:
            file.write(json.dumps({"shard": document, "sha256": digest_of(document)}) + "\n")
        sync(self._path)

    def whole_shards(self, planned: Sequence[OutputShard], folder: Path) -> dict[str, WrittenShard]:
        """The planned shards that are noted, and still in `folder` as they were written: each is hashed again."""
        paths = {shard.path for shard in planned}
        whole = {}
        for shard in self._noted:
            file = folder / shard.path
            there = shard.path in paths and file.is_file() and not file.is_symlink()
            if there and file.stat().st_size == shard.size_bytes and hash_file(file) == shard.sha256:
                whole[shard.path] = shard
        return whole


def _shard_of(line: str) -> WrittenShard:
    """The shard that a line notes. Lines of wanstore 0.1.0 are the shard alone. Raises `ValueError`."""
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("a line is no JSON object")  # noqa: TRY004
    shard = document.get("shard", document)
    if shard is not document and document.get("sha256") != digest_of(shard):
        raise ValueError("the hash of a line does not match")
    return from_json(shard, WrittenShard)
