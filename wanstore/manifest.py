"""The manifest: `wanstore.json`, written last into a pipeline folder, seals it.

It names every other file with its size and SHA-256, where the weights came from, what the conversion did to
them, and the versions of what made it. Its own `digest` covers the document as it is written, keys that this
version does not know included, so a flipped bit in the manifest is noticed as surely as one in a weight file.

Stored manifests outlive the code that wrote them. Every version reads every schema before its own, each by its
own rule, and a key may be added without a new schema: an older reader ignores it, and its digest covers it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from wanstore._error_translation import unreadable
from wanstore._files import read_small_file
from wanstore._formats._json import digest_of, from_json, parse_json, read_json, to_json
from wanstore.errors import DamagedError, NotSupportedError

MANIFEST_NAME = "wanstore.json"
CONVERSION_NAME = "conversion.json"
SCHEMA_VERSION = 2
MANIFEST_MAX_BYTES = 16 << 20
"""Wan 2.1's manifests have 10 kB."""

_UNSIGNED = {1: {"digest", "name"}, 2: {"digest"}}
"""The keys that the digest of each schema leaves out."""
_REMEDY = "Run setup again with --replace"


def _inside(_: object, __: object, value: str) -> None:
    """A file's path stays inside its folder, whatever the JSON says."""
    path = PurePosixPath(value)
    spelled = str(path) == value and path.parts  # "a//b" is no other file than "a/b"
    if not spelled or value.startswith("/") or ".." in path.parts or "\\" in value or not value.isprintable():
        raise ValueError(f"{value!r} is not a path inside the folder")


def _apart(_: object, __: object, value: tuple[FileEntry, ...]) -> None:
    """No file has the place of another, nor of the folder that another is in; nor that of the manifest."""
    places = [MANIFEST_NAME, *(entry.path for entry in value)]
    folders = {str(folder) for place in places for folder in PurePosixPath(place).parents}
    if len(set(places)) < len(places) or folders & set(places):
        raise ValueError("two files have one place")


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
class TensorRecord:
    """What the cast to float16 did to one tensor.

    `max_abs` is the source's largest magnitude; `overflows` counts values beyond 65504 (clamped, when the
    policy allows them); `flushed_to_zero` non-zeros that became zero; `subnormals` stored values below
    2^-14 other than zero; `max_error` and `rms_error` are absolute, against the source; `rms` is the
    source's own root mean square.
    """

    name: str
    source_dtype: str
    stored_dtype: str
    shape: tuple[int, ...]
    max_abs: float = 0.0
    overflows: int = 0
    flushed_to_zero: int = 0
    subnormals: int = 0
    max_error: float = 0.0
    rms_error: float = 0.0
    rms: float = 0.0


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


@attrs.frozen(repr=False)
class Manifest:
    """A sealed pipeline folder, described. `recipe` is equal for equal source, converter and options.

    One that was read has the name of its folder, so that a renamed or copied folder opens; its document, and with it
    the digest, keep the name that it was sealed under.
    """

    name: str
    recipe: str
    created_at: str
    source: SourceRecord
    conversion: ConversionRecord
    files: tuple[FileEntry, ...] = attrs.field(validator=_apart)
    versions: dict[str, str]
    notes: dict[str, str] = attrs.field(factory=dict)
    schema_version: int = SCHEMA_VERSION
    _document: dict[str, Any] | None = attrs.field(default=None, init=False, eq=False)

    def __repr__(self) -> str:
        files, gigabytes = len(self.files), self.size_bytes / 1e9
        return f"<Manifest of {self.name!r}, {gigabytes:.2f} GB in {files} files, digest {self.digest[:12]}>"

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest itself not counted."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def document(self) -> dict[str, Any]:
        """What `wanstore.json` says: as it was read, keys that this version does not know included."""
        return to_json(self) if self._document is None else self._document

    @property
    def digest(self) -> str:
        """SHA-256 over the document but its `digest`, as canonical JSON. In schema 1 it leaves out `name` too."""
        unsigned = _UNSIGNED[self.schema_version]
        return digest_of({key: value for key, value in self.document.items() if key not in unsigned})


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `wanstore.json`."""
    return _written({**manifest.document, "digest": manifest.digest})


def _written(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def parse_manifest(data: bytes, where: str, name: str) -> Manifest:
    """The manifest in `data`, of a folder called `name`; `where` names its place in messages.

    Raises `DamagedError` when it is not whole, and `NotSupportedError` when a newer wanstore wrote it.
    """
    try:
        document = json.loads(data)
        version = document.get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{where} is not a manifest ({error})", _REMEDY) from error
    if type(version) is not int or version < 1:
        raise DamagedError(f"{where} is not a manifest (schema_version is {version!r:.40})", _REMEDY)
    if version > SCHEMA_VERSION:
        raise NotSupportedError(
            f"{where} has schema version {version}, this wanstore reads up to {SCHEMA_VERSION}", "Upgrade wanstore"
        )
    try:
        manifest = attrs.evolve(from_json(document, Manifest), name=name)
    except ValueError as error:
        raise DamagedError(f"{where} is not a whole manifest ({error})", _REMEDY) from error
    object.__setattr__(manifest, "_document", document)
    # Canonical JSON has one spelling of a number or a letter where a file may have many: some flipped bits only show
    # in the bytes. Schema 1 promised nothing about them.
    if document.get("digest") != manifest.digest or (version > 1 and data != _written(document)):
        raise DamagedError(f"{where} was altered: its digest does not match", _REMEDY)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, named after the folder; None when it has none. A link in its place is not followed.

    Raises what `parse_manifest` does, and `AccessError` when it may not be read.
    """
    path = folder / MANIFEST_NAME
    try:
        data = read_small_file(path, MANIFEST_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise unreadable(path) from error
    except ValueError as error:
        raise DamagedError(f"{path} is not a manifest ({error})", _REMEDY) from error
    return parse_manifest(data, str(path), folder.name)


def relative_rms_error(tensors: Iterable[TensorRecord]) -> float:
    """Root mean square of what a conversion changed in these tensors, over that of the source's values."""
    tensors = list(tensors)
    signal = sum(tensor.rms**2 * math.prod(tensor.shape) for tensor in tensors)
    noise = sum(tensor.rms_error**2 * math.prod(tensor.shape) for tensor in tensors)
    return math.sqrt(noise / signal) if signal else 0.0


def read_tensor_records(folder: Path) -> dict[str, Any]:
    """Each tensor's conversion record, as JSON by component. Raises `DamagedError` if there are none."""
    path = folder / CONVERSION_NAME
    return _tensor_records(read_json(path), str(path))


def parse_tensor_records(data: bytes, where: str) -> dict[str, Any]:
    """The same, of the bytes of conversion.json. `where` names them in the `DamagedError`."""
    return _tensor_records(parse_json(data, where), where)


def _tensor_records(document: dict[str, Any], where: str) -> dict[str, Any]:
    records: dict[str, Any] = document.get("tensors", {})
    try:
        from_json(records, dict[str, list[TensorRecord]])
    except ValueError as error:
        raise DamagedError(f"{where} is not a record of tensors ({error})", _REMEDY) from error
    return records
