"""What people are shown of a manifest."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from wanstore.display._text import human_bytes
from wanstore.manifest import Manifest
from wanstore.recipes import recipe_of


@attrs.frozen
class PlainTable:
    """A table of text, for whatever draws it. Columns that begin with `#` are numbers, set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def manifest_tables(manifest: Manifest) -> list[PlainTable]:
    """The facts, the conversion by component, the files."""
    source, conversion = manifest.source, manifest.conversion
    options = "".join(f", {name} {value}" for name, value in conversion.options.items())
    facts = {
        "source": f"{source.location} ({source.kind}) at {source.commit}",
        "made": f"{manifest.created_at} by {conversion.converter}{options}",
        "clips": _clips_of(manifest.notes.get("model", "")),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "size": human_bytes(manifest.size_bytes),
        "digest": manifest.digest,
    }
    components = [
        [
            name,
            str(record.tensors),
            f"{record.parameters:,}",
            ", ".join(f"{count} {dtype}" for dtype, count in record.source_dtypes.items()),
            human_bytes(record.stored_bytes),
            f"{record.max_abs:.4g}",
            str(record.overflows),
            f"{record.flushed_to_zero:,}",
            f"{record.subnormals:,}",
            f"{record.relative_rms_error:.2e}",
        ]
        for name, record in conversion.components.items()
    ]
    head = [
        "component", "#tensors", "#parameters", "from", "#stored", "#largest value", "#overflows", "#to zero",
        "#subnormal", "#rms error",
    ]  # fmt: skip
    files = [[entry.path, human_bytes(entry.size_bytes), entry.sha256[:16]] for entry in manifest.files]
    return [
        PlainTable(manifest.name, ["", ""], list(facts.items())),
        PlainTable("conversion", head, components),
        PlainTable("files", ["file", "#size", "sha256"], files),
    ]


def _clips_of(model: str) -> str:
    """How clips are made, which depends on the model."""
    recipe = recipe_of(model)
    told = f"{model}: {recipe} ({recipe.source})"
    return told if model else f"{recipe}: the model is not recorded, or unknown, so these are {recipe.model}'s"
