"""The page about a pipeline: what it shows, and that nothing in it is fetched, run, or believed to be HTML."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

import wanstore
from tests.benchmarking.reports import failed, report, row
from wanstore.benchmarking.rows import MemoryPeaks
from wanstore.errors import DamagedError, NotSupportedError, WanstoreError
from wanstore.loading import Attention, LoadReport, Phase
from wanstore.manifest import CONVERSION_NAME, Manifest, SourceRecord, TensorRecord, read_tensor_records
from wanstore.reporting import write_report
from wanstore.reporting._charts import Bar, Part, chart
from wanstore.reporting._layers import layer_of, layers

HOSTILE = "<script>alert(1)</script>\"'><img src=//x onerror=a()>&lt;\u202etxt\x1b[2J"
"""As it is shown: what cannot be seen is spelled."""
SHOWN = HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")

LOAD = LoadReport(
    "/data/w", "cuda", 2.0, 14_000_000_000,
    (Phase("imports", 1.0), Phase("weights", 0.5, 14_000_000_000, 1.0), Phase("tokenizer", 0.5, 0, 1.5)), "imports",
)  # fmt: skip


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data + "\n"

    def check(self) -> None:
        """It is whole, and nothing but text, tables and boxes: no element or attribute could fetch or run anything."""
        tags = {tag for tag, _ in self.elements}
        assert self.open == []
        assert tags <= {
            "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "nav", "main", "section", "p", "a",
            "ul", "li", "div", "span", "table", "thead", "tbody", "tr", "th", "td", "svg", "rect",
        }  # fmt: skip
        for tag, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")], tag
            assert re.fullmatch(r"#\w+", attributes.get("href") or "#a")
        assert "url(" not in self.style and "@import" not in self.style


@pytest.fixture(scope="module")
def store(tiny_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `w`, whose conversion has records."""
    root = tmp_path_factory.mktemp("reporting") / "store"
    wanstore.setup(str(tiny_fp32), root, name="w")
    return root


@pytest.fixture
def manifest(store: Path) -> Manifest:
    return wanstore.open_store(store).manifest("w")


def test_the_page_shows_the_manifest_the_sizes_and_the_error_of_each_layer(store: Path, tmp_path: Path) -> None:
    """In one file that fetches nothing."""
    path = wanstore.report("w", tmp_path / "page.html", store=store)
    page = Page(path)
    page.check()
    manifest = wanstore.open_store(store).manifest("w")
    assert manifest.digest in page.text and manifest.source.location in page.text
    assert {"Error by layer: transformer", "blocks.0", "blocks.1", "encoder.block.0"} <= set(page.text.splitlines())
    assert all(f"{entry.path}\n" in page.text for entry in manifest.files)
    assert "Load\n" not in page.text and "Benchmarks\n" not in page.text, "what is not given has no section"


def test_each_section_is_reached_by_a_link(store: Path, tmp_path: Path) -> None:
    """And wide tables by keys, to be scrolled."""
    page = Page(wanstore.report("w", tmp_path / "page.html", store=store, load_report=LOAD, benchmarks=report(row())))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == [f"#{attributes['id']}" for tag, attributes in page.elements if tag == "h2"]
    assert links == ["#manifest", "#size", "#conversion", "#load", "#benchmarks", "#files"]
    assert all(attributes["tabindex"] == "0" for tag, attributes in page.elements if tag == "div")


def test_the_phases_of_a_load_lie_as_they_lay_in_time(store: Path, tmp_path: Path) -> None:
    """The second half of the load is the right half of the drawing."""
    path = wanstore.report("w", tmp_path / "page.html", store=store, load_report=LOAD)
    text = path.read_text()
    assert re.search(r'weights</th><td><svg [^>]*><rect class="two" x="500.00" y="3" width="250.00"', text)
    assert "0.50 s, 28.00 GB/s" in text and "14.00 GB on cuda, bound by imports" in text


def test_benchmarks_are_shown_with_those_that_failed(store: Path, tmp_path: Path) -> None:
    """Time by phase, memory with the limit, and why the safe preset is it."""
    measured = report(row(memory=MemoryPeaks(70.0, 72.0, 75.0)), failed())
    page = Page(wanstore.report("w", tmp_path / "page.html", store=store, benchmarks=measured))
    page.check()
    assert "Safe preset: " in page.text and "safe up to 64.0 GiB" in page.text and "out of memory" in page.text
    colors = [attributes["class"] for tag, attributes in page.elements if tag == "rect"]
    assert {"one", "two", "three", "four", "limit"} <= set(colors)


def test_whatever_others_wrote_is_text(manifest: Manifest, store: Path, tmp_path: Path) -> None:
    """Of the manifest, the records, the load and the benchmarks: no element is made of it, and all of it is shown."""
    folder = tmp_path / "w"
    folder.mkdir()
    record = {"name": f"{HOSTILE}.0.weight", "source_dtype": "F32", "stored_dtype": "F16", "shape": [2, 2]}
    (folder / CONVERSION_NAME).write_text(json.dumps({"tensors": {HOSTILE: [record]}}))
    conversion = attrs.evolve(
        manifest.conversion,
        converter=HOSTILE,
        options={HOSTILE: HOSTILE},
        components={HOSTILE: manifest.conversion.components["vae"]},
    )
    hostile = attrs.evolve(
        manifest,
        source=SourceRecord(HOSTILE, HOSTILE, HOSTILE),
        created_at=HOSTILE,
        conversion=conversion,
        versions={HOSTILE: HOSTILE},
        notes={"model": HOSTILE},
    )
    load = attrs.evolve(
        LOAD, folder=HOSTILE, device=HOSTILE, bound_by=HOSTILE, phases=(Phase(HOSTILE, 1.0),),
        attention=Attention(HOSTILE, HOSTILE, HOSTILE),
    )  # fmt: skip
    measured = report(failed(reason=HOSTILE), failed("480p/3s", HOSTILE), device=HOSTILE, weights=HOSTILE)
    out = tmp_path / "page.html"
    write_report(hostile, read_tensor_records(folder), out, load=load, benchmarks=measured)
    page = Page(out)
    page.check()
    assert page.text.count(SHOWN) >= 15
    assert "\x1b" not in page.text and "\u202e" not in page.text


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, 1e308, 0.0])
def test_any_number_is_drawn_within_the_page(number: float) -> None:
    """Files may hold whatever JSON can say."""
    drawn = chart("figures", [Bar("a", "", [Part("one", 0, 1.0)]), Bar("b", "", [Part("one", number, number + 1)])])
    places = [float(place) for place in re.findall(r' (?:x|width)="([^"]*)"', drawn)]
    assert places and all(0 <= place <= 1000 for place in places)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 5e-324])
def test_figures_that_are_none_are_damage(manifest: Manifest, store: Path, tmp_path: Path, seconds: float) -> None:
    """Or are shown as they are; a page that was there stays."""
    out = tmp_path / "page.html"
    out.write_text("old")
    load = attrs.evolve(LOAD, phases=(Phase("weights", seconds, 10),))
    try:
        write_report(manifest, read_tensor_records(store / "w"), out, load=load)
    except DamagedError:
        assert out.read_text() == "old"
    else:
        Page(out).check()
    with pytest.raises(DamagedError, match="cannot be shown"):
        write_report(manifest, read_tensor_records(store / "w"), out, benchmarks=report(row(steps=0)))


def test_a_layer_is_a_names_first_numbered_part() -> None:
    """Without a number it is the module that has the parameter."""
    names = {
        "blocks.12.attn1.to_q.weight": "blocks.12",
        "encoder.block.3.layer.0.SelfAttention.q.weight": "encoder.block.3",
        "decoder.up_blocks.0.resnets.1.conv1.weight": "decoder.up_blocks.0",
        "condition_embedder.time_proj.bias": "condition_embedder.time_proj",
        "scale_shift_table": "scale_shift_table",
        "shared.weight": "shared",
    }
    assert {name: layer_of(name) for name in names} == names


def test_a_layers_error_is_that_of_all_its_values() -> None:
    """Over the signal of all its values, in the order of the model."""
    records = [
        TensorRecord("blocks.10.a.weight", "F32", "F16", (3,), rms_error=2.0, rms=4.0, flushed_to_zero=2, overflows=1),
        TensorRecord("blocks.10.b.weight", "F32", "F16", (1,), rms_error=4.0, rms=4.0, flushed_to_zero=1),
        TensorRecord("blocks.2.a.weight", "F32", "F16", (1,)),
    ]
    found = layers(records)
    assert [(one.name, one.flushed_to_zero, one.overflows) for one in found] == [
        ("blocks.2", 0, 0),
        ("blocks.10", 3, 1),
    ]
    assert found[0].relative_error == 0
    assert found[1].relative_error == pytest.approx(math.sqrt((3 * 4 + 16) / (4 * 16)))


def test_a_pipeline_without_records_has_a_page_without_layers(tiny_sealed: Path, tmp_path: Path) -> None:
    """Another converter need not keep any."""
    page = Page(wanstore.report(tiny_sealed, tmp_path / "page.html"))
    assert "Error by layer" not in page.text and "other files" in page.text


@pytest.mark.parametrize("text", [None, "[", '{"tensors": 1}'])
def test_damaged_records_are_told(store: Path, tmp_path: Path, text: str | None) -> None:
    """They are in the manifest, so they have to be there."""
    shutil.copytree(store, tmp_path / "store")
    records = tmp_path / "store/w" / CONVERSION_NAME
    records.unlink() if text is None else records.write_text(text)
    with pytest.raises(DamagedError, match=r"conversion\.json"):
        wanstore.report("w", tmp_path / "page.html", store=tmp_path / "store")


def test_of_a_remote_pipeline_nothing_but_its_records_comes_down(s3: Any, store: Path, tmp_path: Path) -> None:
    wanstore.copy("w", store, f"s3://{s3.bucket}/wan")
    s3.requests.clear()
    page = wanstore.report(f"s3://{s3.bucket}/wan/w", tmp_path / "page.html")
    assert "Error by layer" in Page(page).text and not any("safetensors" in request for request in s3.requests)


def test_compiled_functions_have_no_page(compiled_store: Path, tmp_path: Path) -> None:
    """They are no pipeline."""
    (folder,) = compiled_store.glob("w.compiled-*")
    with pytest.raises(NotSupportedError, match="Name the pipeline"):
        wanstore.report(folder, tmp_path / "page.html")


def test_a_place_that_cannot_be_written_is_told(store: Path, tmp_path: Path) -> None:
    """Nothing is left there."""
    with pytest.raises(WanstoreError, match="not a regular file"):
        wanstore.report("w", tmp_path, store=store)
    assert list(tmp_path.iterdir()) == []


def test_load_reports_are_read_from_their_json_and_from_generates(tmp_path: Path) -> None:
    """And nothing else."""
    for text in (LOAD.to_json(), json.dumps({"clip": "clip.mp4", "load": json.loads(LOAD.to_json())})):
        assert LoadReport.from_json(text) == LOAD
    for text in ("", "[]", "{}", '{"load": {"seconds": 1}}', '{"load": []}', "[" * 100_000):
        with pytest.raises(DamagedError, match="not a load report"):
            LoadReport.from_json(text)
