"""What `--json` prints is what `docs/json.md` says: the keys that are printed, no other, and their types."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wanstore
from wanstore.api import storing
from wanstore.cli import main
from wanstore.cli._json import SCHEMA_VERSION
from wanstore.stores.cache._uses import release

PAGE = Path(__file__).parents[2] / "docs/json.md"
KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "object": (dict,),
    "null": (type(None),), "list": (list,),
}  # fmt: skip


def documented(section: str) -> dict[str, str]:
    """The keys of a section's table, each with its type."""
    (body,) = re.findall(
        rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    return dict(re.findall(r"^\| `(.+?)` \| (.+?) \|", body, flags=re.MULTILINE))


def leaves(value: Any, keys: dict[str, str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a document with its key as the page writes it, as deep as the page goes."""
    if path in keys or not isinstance(value, dict | list):
        yield path, value
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, keys, f"{path}[]")
    else:
        named = any(key == f"{path}.*" or key.startswith((f"{path}.*.", f"{path}.*[")) for key in keys)
        for key, item in value.items():
            yield from leaves(item, keys, f"{path}.{'*' if named else key}".lstrip("."))


def answer(*arguments: str | Path, status: int = 0) -> Any:
    """The one document that a command prints."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == status, result.output
    document = json.loads(result.stdout)
    assert document["schema_version"] == SCHEMA_VERSION
    return document


def check(keys: dict[str, str], *documents: Any) -> None:
    """Together the documents have all of the keys, and no other, and the values are of their types."""
    found = [leaf for document in documents for leaf in leaves(document, keys)]
    assert {key for key, _ in found} == set(keys)
    for key, value in found:
        kinds = tuple(kind for name in keys[key].split(" or ") for kind in KINDS[name])
        assert type(value) in kinds, (key, value)


@pytest.fixture
def damaged(compiled_copy: Path) -> Path:
    """A store whose pipeline `d` has a damaged, a missing and an extra file, and whose `e` cannot be read."""
    for name in "de":
        shutil.copytree(compiled_copy / "w", compiled_copy / name)
    (compiled_copy / "d/model_index.json").write_text("{")
    (compiled_copy / "d/vae/config.json").unlink()
    (compiled_copy / "d/more").write_text("")
    (compiled_copy / "e/wanstore.json").write_text("{")
    return compiled_copy


@pytest.fixture(scope="module")
def store(tiny_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that setup filled, with `w`, for which the conversion has records."""
    root = tmp_path_factory.mktemp("json") / "store"
    wanstore.setup(str(tiny_fp32), root, name="w", notes={"attention": "native"})
    return root


def test_setup_and_copy_print_a_pipeline(store: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    """The one that is stored."""
    keys = documented("A pipeline")
    copied = answer("copy", "w", "--from", store, "--to", tmp_path / "there")
    check(keys, copied, answer("setup", tiny_fp32, "--store", tmp_path / "here", "--name", "v"))
    assert copied["digest"] == wanstore.open_store(store).manifest("w").digest


def test_list_prints_pipelines_and_what_cannot_be_read(store: Path, damaged: Path) -> None:
    """Each pipeline with all its keys."""
    check(documented("list"), document := answer("list", "--store", damaged))
    assert [one["name"] for one in document["pipelines"]] == ["d", "w"]
    keys = documented("A pipeline")
    del keys["schema_version"]
    check(keys, *answer("list", "--store", store)["pipelines"])


def test_show_prints_functions_and_tensors_too(store: Path, damaged: Path) -> None:
    """Beside all the keys of a pipeline."""
    keys = documented("A pipeline") | documented("show")
    whole = answer("show", "w", "--store", store, "--tensors")
    check(keys, whole, answer("show", "w", "--store", damaged))
    assert not whole["clips"]["of_this_model"], "it is a tiny one"


def test_verify_prints_what_is_wrong(damaged: Path) -> None:
    """And what to do about it; its answer is no error."""
    document = answer("verify", "d", "--store", damaged, status=1)
    check(documented("verify"), document)
    assert not document["ok"] and document["next_step"] == "run setup or copy again with --replace"
    assert answer("verify", "w", "--store", damaged)["next_step"] == ""


def test_doctor_prints_numbers(compiled_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one unit each."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('made for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    asked = ("doctor", "w", "--store", compiled_copy, "--folder", tmp_path, "--compile", "cached")
    document = answer(*asked)
    check(documented("doctor"), document)
    assert document["broken_imports"] == {"torchvision": "made for another torch"}


def test_doctor_prints_the_plan_of_a_preset(store: Path) -> None:
    """With the peak of each phase."""
    ask = ("doctor", "w", "--store", store, "--preset", "480p/3s", "--memory-gib", "22")
    check(documented("doctor --preset"), answer(*ask))


def test_a_dry_run_prints_its_plan(store: Path, tiny_fp32: Path, tmp_path: Path) -> None:
    """Also where there is nothing to do."""
    new = answer("setup", tiny_fp32, "--store", tmp_path, "--dry-run")
    check(documented("setup --dry-run"), new, answer("setup", tiny_fp32, "--store", store, "--name", "w", "--dry-run"))


def test_delete_prints_what_is_gone(compiled_copy: Path) -> None:
    """Its name."""
    check(documented("delete"), answer("delete", "w", "--store", compiled_copy))


def test_the_cache_prints_what_is_in_it_and_what_leaves(s3: Any, store: Path) -> None:
    """With the store that it comes from, and how far it has come."""
    bucket = f"s3://{s3.bucket}/wan"
    wanstore.copy("w", store, bucket)
    folder = wanstore.open_store(bucket).local_path("w")
    check(documented("cache list"), document := answer("cache", "list"))
    assert [(one["name"], one["state"], one["in_use"]) for one in document["pipelines"]] == [("w", "whole", True)]
    release(folder)
    cleared = answer("cache", "clear")
    check(documented("cache clear"), cleared)
    assert [one["name"] for one in cleared["deleted"]] == ["w"] and not cleared["in_use"] and not folder.exists()


def test_generate_prints_its_load(compiled_store: Path, tmp_path: Path) -> None:
    """And where the clip is."""
    small = ("--size", "32x32", "--frames", "5", "--steps", "1", "--device", "cpu", "--compile", "cached")
    out = ("--out", tmp_path / "clip.mp4")
    document = answer("generate", "w", "--store", compiled_store, "--prompt", "a cat", *small, *out)
    check(documented("generate"), document)
    assert document["load"]["compiled"]["shapes"] == ["1x8"]


def test_compile_prints_what_became_of_each_preset(compiled_store: Path) -> None:
    """Also of those that were there."""
    small = ("--presets", "480p/3s", "--size", "32x32", "--frames", "5", "--device", "cpu")
    check(documented("compile"), answer("compile", "w", "--store", compiled_store, *small))


def test_report_prints_where_the_page_is(store: Path, tmp_path: Path) -> None:
    """As it was asked for."""
    document = answer("report", "w", "--store", store, "--out", tmp_path / "page.html")
    check(documented("report"), document)
    assert Path(document["page"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "kind"),
    [
        (["show", "nothing", "--store", "."], 1, "NotFoundError"),
        (["verify", "../w", "--store", "."], 1, "InvalidNameError"),
        (["list", "--store", "ftp://bucket"], 1, "NotSupportedError"),
        (["show", "--store", "."], 2, "UsageError"),
        (["list", "--store", "."], 1, "InterruptError"),
    ],
)
def test_an_error_is_the_document(
    arguments: list[str], status: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit status that it has without `--json`, and the line for people on stderr."""
    if kind == "InterruptError":
        monkeypatch.setattr("wanstore.stores.local.LocalStore.list", interrupted)
    document = answer(*arguments, status=status)
    check(documented("Errors"), document)
    assert document["error"]["type"] == kind


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_an_interrupt_leaves_to_resume_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a program that runs the command again."""
    monkeypatch.setattr(storing, "copy", interrupted)
    document = answer("copy", "w", "--from", "a", "--to", "b", status=1)
    assert document["error"]["resumable"] and "it resumes" in document["error"]["next_step"]
