"""A list of files in which anything at all may stand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conversion.hub.hostile_hub import HostileHub, whole
from wanstore.errors import SourceError, WanstoreError

GOOD: dict[str, Any] = {"type": "file", "path": "vae/config.json", "size": 2, "oid": "b" * 40}


def refusal(hostile: HostileHub, **changes: Any) -> WanstoreError:
    """The error for a list of one entry with these values, which may be of any type."""
    hostile.tree(json.dumps([GOOD | changes]).encode())
    with pytest.raises(SourceError) as caught:
        hostile.source()
    assert caught.value.next_step and caught.value.what.isprintable() and len(caught.value.what) < 300
    assert len(hostile.requests) == 2  # asking again would not help
    return caught.value


@pytest.mark.parametrize(
    "size",
    [float("inf"), float("-inf"), float("nan"), -1, 2.0, 2.5, "2", None, True, [], {}, 1 << 63, 10**400],
    ids=lambda size: str(size)[:8],
)
def test_a_size_that_is_none_is_refused(hostile: HostileHub, size: Any) -> None:
    """The error names the file, and a long size not at length."""
    assert "vae/config.json the size" in str(refusal(hostile, size=size))


@pytest.mark.parametrize(
    "change",
    [
        {"oid": "b" * 39},
        {"oid": "B" * 40},
        {"oid": 5},
        {"oid": None},
        {"oid": "b" * 40 + "\n"},
        {"lfs": {"oid": "c" * 40}},
        {"lfs": {"oid": 64}},
        {"lfs": {"oid": "../" + "c" * 61}},
    ],
    ids=str,
)
def test_a_hash_that_is_none_is_refused(hostile: HostileHub, change: dict[str, Any]) -> None:
    """Before anything is fetched that could never have it."""
    assert "vae/config.json a malformed hash" in str(refusal(hostile, **change))


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a/..", "..", "a\\b", "C:\\x"])
def test_a_path_out_of_its_folder_is_refused(hostile: HostileHub, path: str) -> None:
    """Whatever operating system would take it for one."""
    assert "outside its folder" in str(refusal(hostile, path=path))


@pytest.mark.parametrize(
    "path",
    ["./x", "a/./x", "a//x", "a/", "", ".", "a\nb", "a\0b", "a\x1b[31mb", "a\x7fb", "a\x9bb", "a\ud800b"],
    ids=ascii,
)
def test_a_path_that_is_not_plain_is_refused(hostile: HostileHub, path: str) -> None:
    """It could be two names of one file, or write to the terminal, or be no name at all."""
    assert "not a plain path" in str(refusal(hostile, path=path))


def test_a_path_that_no_disk_holds_is_refused(hostile: HostileHub) -> None:
    """The error does not hold it either."""
    assert "too long" in str(refusal(hostile, path="é" * 200))


@pytest.mark.parametrize("path", [5, None, ["a"], {"a": 1}, True], ids=str)
def test_a_path_that_is_no_text_is_refused(hostile: HostileHub, path: Any) -> None:
    assert "malformed" in str(refusal(hostile, path=path))


@pytest.mark.parametrize("entries", [5, None, {}, {"a": 1}, [5], [None], [[]], [{}], ["file"], [GOOD | {"lfs": "x"}]])
def test_a_list_that_is_none_is_refused(hostile: HostileHub, entries: Any) -> None:
    """Or, if it is empty, has no files."""
    hostile.tree(json.dumps(entries).encode())
    if entries == {}:
        assert hostile.source().files == {}
        return
    with pytest.raises(SourceError, match="malformed"):
        hostile.source()


@pytest.mark.parametrize("info", [5, None, [], {}, {"sha": 5}, {"sha": "../../x"}, {"sha": "A" * 40}], ids=str)
def test_a_commit_that_is_none_is_refused(hostile: HostileHub, info: Any) -> None:
    """It would be part of each address."""
    hostile.answers["/api/models/"] = lambda _: whole(json.dumps(info).encode())
    with pytest.raises(SourceError, match="no commit"):
        hostile.source()


def test_odd_but_plain_names_are_taken(hostile: HostileHub) -> None:
    """Spaces, dots, and letters of any language."""
    paths = ["a b/ü.txt", ".gitattributes", "...", "日本/x", "Shot 9.41\u202fAM.png"]
    hostile.tree(json.dumps([GOOD | {"path": path} for path in paths]).encode())
    assert list(hostile.source().files) == paths
