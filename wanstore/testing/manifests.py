"""Manifests of folders as they are, without a conversion: for tests of what writes and reads sealed folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from wanstore._files import files_below, hash_file
from wanstore.manifest import (
    MANIFEST_NAME,
    ConversionRecord,
    FileEntry,
    Manifest,
    SourceRecord,
    dump_manifest,
    parse_manifest,
)


def manifest_of(folder: Path, name: str, recipe: str = "recipe", notes: Mapping[str, str] | None = None) -> Manifest:
    """A manifest that fits the contents of `folder`."""
    found = {path: status for path, status in sorted(files_below(folder).items()) if path != MANIFEST_NAME}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = pool.map(hash_file, [folder / path for path in found])
    return Manifest(
        name=name,
        recipe=recipe,
        created_at="2026-01-01T00:00:00+00:00",
        source=SourceRecord("folder", "made-up", "0" * 40),
        conversion=ConversionRecord("none", 1, {}, {}),
        files=tuple(
            FileEntry(path, status.st_size, sha256)
            for (path, status), sha256 in zip(found.items(), hashes, strict=True)
        ),
        versions={},
        notes=dict(notes or {}),
    )


def with_unknown_key(manifest: Manifest) -> Manifest:
    """`manifest` as a later wanstore may write it: with a key that this version does not know."""
    later = attrs.evolve(manifest)
    object.__setattr__(later, "_document", {**manifest.document, "of_a_later_version": {"numbers": [1, 2]}})
    return parse_manifest(dump_manifest(later), "a made-up manifest", manifest.name)


def seal_as_is(folder: Path, **notes: str) -> Manifest:
    """Write a manifest of what `folder` holds now, and return it."""
    manifest = manifest_of(folder, folder.name, notes=notes)
    (folder / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
    return manifest
