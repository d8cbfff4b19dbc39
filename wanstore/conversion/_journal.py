"""The journal of a conversion: which shards are whole, so that an interrupted run can resume after them."""

from __future__ import annotations

import json
from pathlib import Path

from wanstore._files import hash_file, sync
from wanstore._json import from_json, to_json
from wanstore.conversion._stream import WrittenShard


class Journal:
    """One line for each whole shard, the first line names the plan; another plan's journal is dropped."""

    def __init__(self, path: Path, plan_digest: str) -> None:
        self._path = path
        self._head = json.dumps({"plan": plan_digest})
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if not lines or lines[0] != self._head + "\n":
            lines = [self._head + "\n"]
        # A run that was killed while it wrote leaves half a line: the next one must not be glued to it.
        path.write_text("".join(line for line in lines if line.endswith("\n")))

    def add(self, shard: WrittenShard) -> None:
        """Note a shard whose bytes are on the disk."""
        with self._path.open("a") as file:
            file.write(json.dumps(to_json(shard)) + "\n")
        sync(self._path)

    def whole_shards(self, folder: Path) -> dict[str, WrittenShard]:
        """The noted shards that are still in `folder` as they were written: each is hashed again."""
        whole = {}
        for line in self._path.read_text().splitlines()[1:]:
            shard = from_json(json.loads(line), WrittenShard)
            file = folder / shard.path
            if file.is_file() and file.stat().st_size == shard.size_bytes and hash_file(file) == shard.sha256:
                whole[shard.path] = shard
        return whole
