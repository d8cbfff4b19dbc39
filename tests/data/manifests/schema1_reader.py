"""The reader of schema 1 as wanstore 0.1.0 had it, frozen: what stores that are on disks today are read by.

It stays as it is, whatever the library does: tests give it what newer versions write.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any

import attrs
import cattrs

from wanstore.errors import DamagedError, NotSupportedError

_JSON = cattrs.Converter(forbid_extra_keys=False)


def digest_of(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_json(data: Any) -> Any:
    return json.loads(json.dumps(_JSON.unstructure(data)))


def from_json(data: Any, cls: Any) -> Any:
    try:
        return _JSON.structure(data, cls)
    except Exception as error:
        raise ValueError("; ".join(cattrs.transform_error(error))) from error


SCHEMA_VERSION = 1


def _inside(_: object, __: object, value: str) -> None:
    """A file's path stays inside its folder, whatever the JSON says."""
    parts = PurePosixPath(value).parts
    if not parts or value.startswith("/") or ".." in parts or "\\" in value or "\0" in value:
        raise ValueError(f"{value!r} is not a path inside the folder")


@attrs.frozen
class FileEntry:
    """One file of a pipeline folder; `path` is relative, with forward slashes."""

    path: str = attrs.field(validator=_inside)
    size_bytes: int
    sha256: str


@attrs.frozen
class SourceRecord:
    """Where weights came from.

    `kind` is `hub` or `folder`; `location` the repo id or the folder's own name; `commit` the Hub commit, or
    for a folder the digest of its file names, sizes and modification times.
    """

    kind: str
    location: str
    commit: str
    revision: str | None = None


@attrs.frozen
class ComponentRecord:
    """A component's tensor records summed up; `relative_rms_error` is error over signal, of all its values."""

    tensors: int
    parameters: int
    source_bytes: int
    stored_bytes: int
    source_dtypes: dict[str, int]
    max_abs: float
    max_abs_tensor: str
    overflows: int
    flushed_to_zero: int
    subnormals: int
    max_error: float
    relative_rms_error: float


@attrs.frozen
class ConversionRecord:
    """What a converter did: its name and version, its options, and the sums by component.

    The records of single tensors are in the folder's `conversion.json`.
    """

    converter: str
    version: int
    options: dict[str, str]
    components: dict[str, ComponentRecord]


@attrs.frozen
class Manifest:
    """A sealed pipeline folder, described. `recipe` is equal for equal source, converter and options."""

    name: str
    recipe: str
    created_at: str
    source: SourceRecord
    conversion: ConversionRecord
    files: tuple[FileEntry, ...]
    versions: dict[str, str]
    notes: dict[str, str] = attrs.field(factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest itself not counted."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over everything the manifest says but its name: a renamed copy keeps its digest."""
        return digest_of({k: v for k, v in to_json(self).items() if k != "name"})


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `wanstore.json`."""
    document = {**to_json(manifest), "digest": manifest.digest}
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`; `where` names its place in messages.

    Raises `DamagedError` when it is not whole, and `NotSupportedError` when a newer wanstore wrote it.
    """
    try:
        document = json.loads(data)
        version = document.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{where} is not a manifest ({error})", "Run setup again with --replace") from error
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NotSupportedError(
            f"{where} has schema version {version}, this wanstore reads up to {SCHEMA_VERSION}", "Upgrade wanstore"
        )
    try:
        manifest: Manifest = from_json(document, Manifest)
    except ValueError as error:
        raise DamagedError(f"{where} is not a whole manifest ({error})", "Run setup again with --replace") from error
    if document.get("digest") != manifest.digest:
        raise DamagedError(f"{where} was altered: its digest does not match", "Run setup again with --replace")
    return manifest
