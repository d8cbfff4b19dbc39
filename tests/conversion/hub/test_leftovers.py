"""What an earlier run left where a file goes cannot stop the next one, nor lead it elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.conversion.hub.hostile_hub import LIMITS
from wanstore.conversion.hub import HubSource
from wanstore.interfaces import Quiet
from wanstore.testing.hub import LoopbackHub

FILE = "vae/model.safetensors"
CONTENT = bytes(range(256)) * 4096


@contextmanager
def source_below(folder: Path) -> Iterator[HubSource]:
    """A source whose repo and whose downloads are there."""
    (folder / "repo/vae").mkdir(parents=True)
    (folder / "repo" / FILE).write_bytes(CONTENT)
    (folder / "outside").mkdir()
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        hub.add_repo("Wan-AI/Tiny", folder / "repo")
        yield HubSource("Wan-AI/Tiny", keep=folder / "kept", limits=LIMITS)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[HubSource]:
    with source_below(tmp_path) as source:
        yield source


def folder(place: Path) -> None:
    (place / "inner").mkdir(parents=True)
    (place / "inner/file").write_text("x")


def pipe(place: Path) -> None:
    os.mkfifo(place)


def link_to_nothing(place: Path) -> None:
    place.symlink_to("nothing")


def link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


def link_outside(place: Path) -> None:
    (place.parents[2] / "outside/theirs").write_bytes(b"theirs")
    place.symlink_to(place.parents[2] / "outside/theirs")


def link_to_a_folder_outside(place: Path) -> None:
    place.symlink_to(place.parents[2] / "outside")


def second_name(place: Path) -> None:
    (place.parents[2] / "outside/theirs").write_bytes(b"theirs")
    os.link(place.parents[2] / "outside/theirs", place)


NOT_PLAIN = [folder, pipe, link_to_nothing, link_to_itself, link_outside, link_to_a_folder_outside, second_name]


@pytest.mark.parametrize("suffix", ["", ".part", ".pieces"])
@pytest.mark.parametrize("leave", NOT_PLAIN, ids=lambda leave: leave.__name__)
def test_what_is_no_plain_file_is_dropped(
    source: HubSource, tmp_path: Path, caplog: pytest.LogCaptureFixture, leave: Callable[[Path], None], suffix: str
) -> None:
    """With a warning; what a link leads to stays as it is."""
    place = tmp_path / "kept" / f"{FILE}{suffix}"
    place.parent.mkdir(parents=True)
    leave(place)
    fetched = source.fetch(FILE, tmp_path / "into", Quiet())
    assert fetched.read_bytes() == CONTENT and not fetched.is_symlink()
    assert [path.name for path in fetched.parent.iterdir()] == ["model.safetensors"]
    assert [path.read_bytes() for path in (tmp_path / "outside").iterdir()] in ([], [b"theirs"])
    warned = [record.getMessage() for record in caplog.records if record.name == "wanstore"]
    expected = [] if (leave, suffix) == (second_name, "") else [str(place)]  # wrong bytes, which are only read
    assert [text.split(" is deleted")[0] for text in warned] == expected


@pytest.mark.parametrize(
    "notes",
    [
        b"\xff\xfe[0-9]",
        bytes(4096),
        b'{"pieces": ',
        b"[" * 100_000,
        json.dumps([[0, 9]]).encode() + b"\x00",
        "[٠-٩]".encode(),
        b"[0-" + b"9" * 10_000 + b"]",
        b"[9-0]\n[-5-9]\n[0--9]",
        f"[0-{len(CONTENT)}]".encode(),
    ],
    ids=lambda notes: repr(notes[:12]),
)
def test_damaged_notes_are_not_trusted(source: HubSource, tmp_path: Path, notes: bytes) -> None:
    """Nor do they end in a traceback."""
    place = tmp_path / "kept" / FILE
    place.parent.mkdir(parents=True)
    place.with_name(f"{place.name}.part").write_bytes(bytes(len(CONTENT)))
    place.with_name(f"{place.name}.pieces").write_bytes(notes)
    assert source.fetch(FILE, tmp_path / "into", Quiet()).read_bytes() == CONTENT


def test_notes_that_are_no_notes_are_warned_of(
    source: HubSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With their path."""
    notes = tmp_path / "kept" / f"{FILE}.pieces"
    notes.parent.mkdir(parents=True)
    notes.with_suffix(".part").write_bytes(b"x")
    notes.write_bytes(b"\xff")
    source.fetch(FILE, tmp_path / "into", Quiet())
    assert f"{notes} is deleted and downloaded again: it is damaged" in caplog.text


@pytest.mark.parametrize("leave", [link_to_nothing, link_to_itself, pipe], ids=lambda leave: leave.__name__)
def test_what_is_in_the_place_of_a_folder_is_dropped(
    source: HubSource, tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    """A file goes below the folder that was named, and nowhere else."""
    (tmp_path / "kept").mkdir()
    leave(tmp_path / "kept/vae")
    assert source.fetch(FILE, tmp_path / "into", Quiet()).read_bytes() == CONTENT


def test_a_link_in_the_place_of_a_folder_is_not_followed(source: HubSource, tmp_path: Path) -> None:
    """Though it leads to one."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/vae").symlink_to(tmp_path / "outside")
    assert source.fetch(FILE, tmp_path / "into", Quiet()).read_bytes() == CONTENT
    assert list((tmp_path / "outside").iterdir()) == []


def test_the_folder_itself_may_be_a_link(source: HubSource, tmp_path: Path) -> None:
    """Whoever named it chose so."""
    (tmp_path / "kept").symlink_to(tmp_path / "outside")
    source.fetch(FILE, tmp_path / "into", Quiet())
    assert (tmp_path / "outside" / FILE).read_bytes() == CONTENT


@pytest.mark.parametrize("suffix", ["", ".part", ".pieces"])
def test_what_cannot_be_read_is_dropped(unprivileged: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its folder can be written, so another can take its place."""
    place = unprivileged / f"kept/{FILE}{suffix}"
    place.parent.mkdir(parents=True)
    place.with_name("model.safetensors.part").write_bytes(b"x")
    place.write_bytes(b"x")
    place.chmod(0)
    with source_below(unprivileged) as source:
        assert source.fetch(FILE, unprivileged, Quiet()).read_bytes() == CONTENT
    assert f"{place} is deleted and downloaded again: it cannot be read" in caplog.text
