"""The manifest: what is on disks is read for good, and no change of it goes unnoticed."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.data.manifests import schema1_reader
from wanstore._formats._json import digest_of, to_json
from wanstore.building._artifacts import is_compiled, shapes_in
from wanstore.errors import DamagedError, NotSupportedError
from wanstore.manifest import (
    MANIFEST_MAX_BYTES,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    dump_manifest,
    parse_manifest,
    read_manifest,
)
from wanstore.stores.local import LocalStore
from wanstore.testing.stores import put

DATA = Path(__file__).parent / "data" / "manifests"
STORED = sorted(DATA.glob("schema*/*.json"))


def stored(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def signed(document: dict[str, Any]) -> bytes:
    """`document` as a version of schema 2 would write it."""
    document = {key: value for key, value in document.items() if key != "digest"}
    return (json.dumps({**document, "digest": digest_of(document)}, indent=2, sort_keys=True) + "\n").encode()


def newest() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / f"schema{SCHEMA_VERSION}/folder.json").read_text())
    return document


@pytest.mark.parametrize("path", STORED, ids=stored)
def test_manifests_of_every_schema_are_read_for_good(path: Path) -> None:
    """Under any name, and written again they are what they were, byte for byte."""
    manifest = parse_manifest(path.read_bytes(), "it", "renamed")
    assert manifest.name == "renamed"
    if is_compiled(manifest):
        assert manifest.source.kind == "pipeline" and shapes_in(manifest) and manifest.conversion.options["torch"]
    else:
        assert manifest.source.kind in ("hub", "folder") and len(manifest.files) > 20
    assert manifest.digest == json.loads(path.read_text())["digest"]
    assert dump_manifest(manifest) == path.read_bytes()


def test_there_are_manifests_of_every_schema() -> None:
    """Who raises the schema version keeps what the last one wrote."""
    assert {path.parent.name for path in STORED} == {f"schema{n + 1}" for n in range(SCHEMA_VERSION)}


@pytest.mark.parametrize("path", sorted(DATA.glob("schema1/*.json")), ids=stored)
def test_schema_1_is_read_as_its_own_reader_reads_it(path: Path) -> None:
    """The stores that are on disks today say the same to both."""
    ours, theirs = (
        parse_manifest(path.read_bytes(), "it", path.stem),
        schema1_reader.parse_manifest(path.read_bytes(), "it"),
    )
    assert to_json(ours) == schema1_reader.to_json(theirs) and ours.digest == theirs.digest


def test_a_reader_of_schema_1_says_to_upgrade_not_that_the_store_is_damaged() -> None:
    """It must not advise to make 14.5 GB again."""
    with pytest.raises(NotSupportedError, match="Upgrade wanstore"):
        schema1_reader.parse_manifest(signed(newest()), "it")


@pytest.mark.parametrize("where", [(), ("source",), ("conversion",), ("conversion", "components", "vae"), ("files", 0)])
def test_what_a_newer_version_added_is_accepted_kept_and_covered(where: tuple[Any, ...]) -> None:
    """A key that this version does not know changes nothing, and altering it is noticed."""
    document = newest()
    place: Any = document
    for key in where:
        place = place[key]
    place["added_later"] = {"by": "a newer version"}
    data = signed(document)
    manifest = parse_manifest(data, "it", "w")
    assert dump_manifest(manifest) == data and manifest == parse_manifest(signed(newest()), "it", "w")
    with pytest.raises(DamagedError, match="altered"):
        parse_manifest(data.replace(b"a newer", b"another"), "it", "w")


def test_a_key_with_a_default_may_be_missing() -> None:
    """As it is in what was written before the key came."""
    document = newest()
    del document["notes"], document["source"]["revision"]
    manifest = parse_manifest(signed(document), "it", "w")
    assert manifest.notes == {} and manifest.source.revision is None


def test_a_changed_manifest_is_another_document() -> None:
    """What was read is kept as long as nothing in it is changed."""
    manifest = parse_manifest(signed({**newest(), "added_later": 1}), "it", "w")
    changed = attrs.evolve(manifest, notes={"attention": "native"})
    assert changed.digest != manifest.digest and "added_later" not in changed.document
    assert parse_manifest(dump_manifest(changed), "it", "w") == changed


@pytest.mark.parametrize("path", sorted(DATA.glob(f"schema{SCHEMA_VERSION}/*.json")), ids=stored)
def test_no_flipped_bit_goes_unnoticed(path: Path) -> None:
    """Names, defaults, the last digits of numbers, the spelling of letters: a sample of all bits."""
    data = path.read_bytes()
    for bit in random.Random(path.stem).sample(range(len(data) * 8), 1000):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedError, NotSupportedError)):
            parse_manifest(bytes(flipped), "it", "w")


@pytest.mark.parametrize(
    "change",
    [
        ('"max_abs": 0.0', '"max_abs": 0.00'),
        ("K\\u00e4se", "K\\u00E4se"),
        ("K\\u00e4se", "Käse"),
        ("{\n", "{ \n"),
        ('  "name": "folder",\n', '  "name": "folder",\n  "name": "folder",\n'),
        ('"name": "folder"', '"name": "golder"'),
        ("}\n}\n", "}\n}"),
    ],
    ids=["number", "case", "letter", "space", "twice", "name", "end"],
)
def test_another_spelling_of_the_same_document_is_noticed(change: tuple[str, str]) -> None:
    """The digest alone would not tell: the bytes do."""
    text = (DATA / "schema2/folder.json").read_text()
    if change[0] not in text:
        number = text[text.index('"max_abs": ') :].split(",")[0]
        change = (number, number + "0")
    with pytest.raises(DamagedError):
        parse_manifest(text.replace(*change, 1).encode(), "it", "w")


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"null", b"{}", b"[" * 100_000, b'{"schema_version": true}', b'{"schema_version": 0}',
     b'{"schema_version": "2"}', b'{"schema_version": 2.0}', b'{"schema_version": 2}',
     b'{"schema_version": ' + b"9" * 5000 + b"}"],
    ids=["empty", "bytes", "list", "null", "none", "deep", "true", "zero", "text", "float", "bare", "digits"],
)  # fmt: skip
def test_what_is_no_manifest_is_damage(data: bytes) -> None:
    """In one line, whatever it is."""
    with pytest.raises(DamagedError) as caught:
        parse_manifest(data, "it", "w")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a/../b", "a\\b", "a\0b", "", "a\x1b[2J", "\ud800", "./a", "a//b", "a/"]
)
def test_paths_that_leave_the_folder_or_hide_in_it_are_damage(path: str) -> None:
    """Also in a document whose digest is right."""
    document = newest()
    document["files"][0]["path"] = path
    with pytest.raises(DamagedError, match=r"files\[0\]"):
        parse_manifest(signed(document), "it", "w")


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), (MANIFEST_NAME, "a"), (f"{MANIFEST_NAME}/a", "a")])
def test_files_that_take_one_place_are_damage(paths: tuple[str, str]) -> None:
    """No folder can hold both."""
    document = newest()
    document["files"] = [{**document["files"][0], "path": path} for path in paths]
    with pytest.raises(DamagedError, match="not a whole manifest"):
        parse_manifest(signed(document), "it", "w")


def test_a_renamed_and_a_copied_folder_open(tmp_path: Path) -> None:
    """They go by their new name, and keep the digest: it is the same pipeline."""
    store = LocalStore(tmp_path)
    sealed = put(store, "w")
    shutil.copytree(tmp_path / "w", tmp_path / "copy")
    (tmp_path / "w").rename(tmp_path / "renamed")
    for name in ("copy", "renamed"):
        assert store.manifest(name) == attrs.evolve(sealed, name=name)
        assert store.manifest(name).digest == sealed.digest and store.verify(name).ok


def test_neither_a_link_nor_a_pipe_nor_a_huge_file_is_read(tmp_path: Path) -> None:
    """A folder's manifest is a small regular file; nothing waits, nothing fills the memory."""
    store, path = LocalStore(tmp_path), tmp_path / "w" / "wanstore.json"
    put(store, "w")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError, match="regular"):
        read_manifest(tmp_path / "w")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="regular"):
        read_manifest(tmp_path / "w")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(12 << 30)
    with pytest.raises(DamagedError, match=f"larger than {MANIFEST_MAX_BYTES >> 20} MiB"):
        read_manifest(tmp_path / "w")
