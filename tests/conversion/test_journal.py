"""The journal: an interrupted conversion goes on, and a damaged journal costs work, never correctness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import wanstore
from wanstore._formats._json import to_json
from wanstore.conversion._journal import Journal
from wanstore.conversion._stream import WrittenShard
from wanstore.interfaces import OutputShard, Quiet
from wanstore.manifest import TensorRecord
from wanstore.stores.local import LocalStore

SHARD = WrittenShard("vae", "a", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", (), ())
PLANNED = [OutputShard("vae", path, "source", (), None) for path in ("a", "b")]  # type: ignore[arg-type]


class Messages(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal that notes the shard `a`, which is there and holds b"abc"."""
    (tmp_path / "a").write_bytes(b"abc")
    Journal(tmp_path / "journal.jsonl", "plan", Quiet()).add(SHARD)
    return tmp_path / "journal.jsonl"


def whole(path: Path, plan: str = "plan", progress: Quiet | None = None) -> dict[str, WrittenShard]:
    return Journal(path, plan, progress or Quiet()).whole_shards(PLANNED, path.parent)


def test_a_noted_shard_is_found_again(path: Path) -> None:
    """Also by the second run after it."""
    assert whole(path) == whole(path) == {"a": SHARD}


def test_half_a_line_is_dropped_and_what_follows_is_not_glued_to_it(path: Path) -> None:
    """A run was killed while it wrote."""
    path.write_text(path.read_text() + '{"shard": {"pa')
    assert whole(path) == {"a": SHARD}
    Journal(path, "plan", Quiet()).add(SHARD)
    assert whole(path) == {"a": SHARD}


def test_another_plans_journal_is_dropped(path: Path) -> None:
    """Its shards are not those of this plan."""
    assert whole(path, "another") == {} == whole(path)


def test_a_shard_that_changed_or_is_not_planned_does_not_count(path: Path) -> None:
    """What is not what was written is written again."""
    (path.parent / "a").write_bytes(b"abd")
    assert whole(path) == {}
    (path.parent / "a").write_bytes(b"abc")
    assert Journal(path, "plan", Quiet()).whole_shards(PLANNED[1:], path.parent) == {}


def test_lines_of_the_first_release_are_read(path: Path) -> None:
    """A run that was interrupted before an upgrade goes on after it."""
    head = path.read_text().split("\n")[0]
    path.write_text(head + "\n" + json.dumps(to_json(SHARD)) + "\n")
    assert whole(path) == {"a": SHARD}


@pytest.mark.parametrize(
    "line", [b"\xff", b"nonsense", b"[]", b"1", b"{}", b"[" * 100_000, b'{"shard": 1}'],
    ids=["bytes", "nonsense", "list", "number", "empty", "deep", "shard"],
)  # fmt: skip
def test_a_damaged_journal_is_dropped_with_a_message(path: Path, line: bytes) -> None:
    """Not a traceback at every later run of that name."""
    path.write_bytes(path.read_bytes() + line + b"\n")
    messages = Messages()
    assert whole(path, progress=messages) == {}
    assert len(messages.texts) == 1 and "damaged" in messages.texts[0]
    Journal(path, "plan", Quiet()).add(SHARD)
    assert whole(path) == {"a": SHARD}


def test_a_flipped_bit_in_the_statistics_is_noticed(path: Path) -> None:
    """They go into the manifest, and no file's hash covers them."""
    shard = WrittenShard("vae", "b", 3, SHARD.sha256, (TensorRecord("t", "F32", "F16", (1,), max_abs=1.5),), ())
    Journal(path, "plan", Quiet()).add(shard)
    path.write_text(path.read_text().replace("1.5", "1.4"))
    messages = Messages()
    assert whole(path, progress=messages) == {} and messages.texts


def test_a_folder_in_the_journals_place_is_dropped(path: Path) -> None:
    """Whatever put it there."""
    path.unlink()
    path.mkdir()
    assert whole(path) == {} and path.is_file()


@pytest.mark.parametrize("file", ["key", "scratch/journal.jsonl"])
def test_setup_resumes_or_begins_anew_whatever_is_damaged(tiny_fp32: Path, tmp_path: Path, file: str) -> None:
    """Kept work is a convenience: a flipped bit in it never stops a later setup."""

    class Interrupting(Quiet):
        def advance(self, task: str, amount: int) -> None:
            if len((stage / "scratch/journal.jsonl").read_text().splitlines()) > 3:
                raise KeyboardInterrupt

    store = LocalStore(tmp_path / "store")
    stage = store.root / ".wanstore/stages/w"
    with pytest.raises(KeyboardInterrupt):
        wanstore.setup(str(tiny_fp32), store, name="w", progress=Interrupting())
    (stage / file).write_bytes(b"\xff" + (stage / file).read_bytes()[1:])
    wanstore.setup(str(tiny_fp32), store, name="w")
    assert store.verify("w").ok
