"""Seal a pipeline folder as it is, without a conversion: for tests of what reads sealed folders."""

from __future__ import annotations

from pathlib import Path

from wanstore.files import files_below, hash_file
from wanstore.manifest import MANIFEST_NAME, ConversionRecord, FileEntry, Manifest, SourceRecord, dump_manifest


def seal_as_is(folder: Path) -> Manifest:
    """Write a manifest of what `folder` holds now, and return it."""
    found = {path: status for path, status in sorted(files_below(folder).items()) if path != MANIFEST_NAME}
    manifest = Manifest(
        name=folder.name,
        recipe="as-is",
        created_at="2025-01-01T00:00:00+00:00",
        source=SourceRecord("folder", folder.name, "0" * 64),
        conversion=ConversionRecord("none", 1, {}, {}),
        files=tuple(FileEntry(path, status.st_size, hash_file(folder / path)) for path, status in found.items()),
        versions={},
    )
    (folder / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
    return manifest
