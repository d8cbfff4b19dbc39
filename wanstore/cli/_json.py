"""What `--json` prints: one document with the version of its schema. `docs/json.md` names every key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from wanstore.errors import WanstoreError, without_secrets

if TYPE_CHECKING:  # it comes with every command, and most print text
    from wanstore.interfaces import Unreadable, VerifyReport
    from wanstore.manifest import Manifest

SCHEMA_VERSION = 1
"""Raised when a key goes or changes its meaning. New keys leave it as it is."""


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document, its schema's version first."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


def pipeline_json(manifest: Manifest) -> dict[str, Any]:
    """A sealed folder, as `list`, `show`, `setup` and `copy` tell it."""
    from wanstore._formats._json import to_json

    fields = to_json(manifest)
    version = fields.pop("schema_version")  # the manifest's, not the document's
    return {**fields, "manifest_schema_version": version, "size_bytes": manifest.size_bytes, "digest": manifest.digest}


def list_json(pipelines: Iterable[Manifest], unreadable: Iterable[Unreadable]) -> dict[str, Any]:
    """What `wanstore list` tells."""
    from wanstore._formats._json import to_json

    return {"pipelines": [pipeline_json(one) for one in pipelines], "unreadable": [to_json(one) for one in unreadable]}


def show_json(manifest: Manifest, compiled: Iterable[Manifest]) -> dict[str, Any]:
    """What `wanstore show` tells of a pipeline, and of its compiled functions."""
    from wanstore._formats._json import to_json
    from wanstore.recipes import recipe_of

    model = manifest.notes.get("model", "")
    recipe = recipe_of(model)
    clips = {**to_json(recipe), "of_this_model": model == recipe.model}
    return {**pipeline_json(manifest), "clips": clips, "compiled": [compiled_json(one) for one in compiled]}


def compiled_json(manifest: Manifest) -> dict[str, Any]:
    """A folder of compiled functions: what they were made for, and each one's clip size."""
    from wanstore.building._artifacts import shapes_in, spelled
    from wanstore.presets import PRESETS

    names = {preset.clip.shape: preset.name for preset in PRESETS.values()}
    return {
        "name": manifest.name,
        "created_at": manifest.created_at,
        "size_bytes": manifest.size_bytes,
        "made_for": manifest.conversion.options,
        "functions": [{"shape": spelled(shape), "preset": names.get(shape)} for shape in shapes_in(manifest)],
    }


def verify_json(report: VerifyReport, next_step: str) -> dict[str, Any]:
    """What `wanstore verify` tells."""
    from wanstore._formats._json import to_json

    return {**to_json(report), "ok": report.ok, "next_step": next_step}


def error_json(error: WanstoreError | click.ClickException) -> dict[str, Any]:
    """What is printed in place of an answer: `type` is the error's class, `UsageError` for wrong usage."""
    if isinstance(error, WanstoreError):
        told = {"type": type(error).__name__, "what": error.what, "next_step": error.next_step}
        return {"error": {**told, "resumable": error.resumable}}
    what = without_secrets(error.format_message())
    return {"error": {"type": "UsageError", "what": what, "next_step": "", "resumable": False}}
