"""Backends of other packages: found by their entry points, and one line when they are broken."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import wanstore
from wanstore.api._setup import make_converter
from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.cli import main
from wanstore.errors import InvalidNameError, NotSupportedError
from wanstore.testing.manifests import seal_as_is

Install = Callable[[str, str], Path]

STORE = """
from pathlib import Path
from wanstore.errors import InvalidNameError
from wanstore.stores.local import LocalStore

class Store(LocalStore):
    def __init__(self, url):
        if "bad" in url:
            raise InvalidNameError("no bad buckets")
        super().__init__(Path(url.partition("://")[2]))
"""
CONVERTER = """
from wanstore.conversion.fp16 import Fp16Converter

class Converter(Fp16Converter):
    name = "half"
    def __init__(self, *, seed="0"):
        super().__init__()
        self.seed = seed
    @property
    def options(self):
        return {"seed": self.seed}
"""
BROKEN = {
    "import": ("import not_installed_anywhere", r"cannot be imported \(ModuleNotFoundError: No module named 'not_inst"),
    "error": ("raise ValueError('two\\nlines')", r"cannot be imported \(ValueError: two\)"),
    "exit": ("raise SystemExit('bye')", r"cannot be imported \(SystemExit: bye\)"),
    "missing": ("", r"cannot be imported \(AttributeError: .*Thing"),
    "made": ("def Thing(*args, **kwargs): 1 / 0", r"cannot be made \(ZeroDivisionError: division by zero\)"),
    "arguments": ("def Thing(a, b, c): ...", r"cannot be made \(TypeError: Thing\(\) missing "),
    "kind": ("def Thing(*args, **kwargs): return 'x'", "makes a str, which is no "),
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package `plugin-NUMBER` whose one module has this source, with these entry points."""
    numbers = iter(range(100))

    def install(source: str, entry_points: str) -> Path:
        number = next(numbers)
        site, module = tmp_path / f"site{number}", f"plugin_{tmp_path.name}_{number}".replace("-", "_")
        info = site / f"plugin_{number}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points).replace("MODULE", module))
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        return site

    return install


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `wanstore` in this process: its status, and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_a_store_of_another_package_is_opened_by_its_scheme(install: Install, tmp_path: Path) -> None:
    """It is called with the URL, and what it says of the URL is heard."""
    install(STORE, "[wanstore.stores]\nmine = MODULE:Store\n")
    assert type(wanstore.open_store(f"mine://{tmp_path}")).__name__ == "Store"
    with pytest.raises(InvalidNameError, match="no bad buckets"):
        wanstore.open_store("mine://bad")


def test_a_scheme_that_nobody_serves_names_those_that_there_are(install: Install) -> None:
    """Built-in and installed."""
    install(STORE, "[wanstore.stores]\nmine = MODULE:Store\n")
    with pytest.raises(NotSupportedError, match=r"no store ftp://.*: az://, file://, gs://, mine://, modal://, s3://"):
        wanstore.open_store("ftp://bucket")


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("kind", ["store", "converter"])
def test_a_broken_entry_point_is_one_line_that_names_it(install: Install, kind: str, fault: str) -> None:
    """And its package, so that somebody can mend or remove it."""
    source, reason = BROKEN[fault]
    install(source, f"[wanstore.{kind}s]\nmine = MODULE:Thing\n")
    with pytest.raises(
        NotSupportedError, match=rf"^The {kind} 'mine' \(plugin_.*:Thing, of the package plugin-0\) "
    ) as got:
        wanstore.open_store("mine://x") if kind == "store" else make_converter("mine")
    got.match(reason)
    assert "\n" not in str(got.value)


def test_setup_takes_the_converter_of_another_package_with_its_options(
    install: Install, run: Run, tiny_fp32: Path, tmp_path: Path
) -> None:
    """They are strings by keyword; the manifest records them."""
    install(CONVERTER, "[wanstore.converters]\nhalf = MODULE:Converter\n")
    status, output, errors = run(
        "setup",
        tiny_fp32,
        "--store",
        tmp_path / "store",
        "--converter",
        "half",
        "--converter-option",
        "seed=7",
        "--json",
    )
    assert status == 0, errors
    record = json.loads(output)["conversion"]
    assert (record["converter"], record["options"]) == ("half", {"seed": "7"})


@pytest.mark.parametrize(
    ("options", "expected", "message"),
    [
        (
            ["--converter", "none"],
            1,
            "There is no converter none. Install a package that adds it, or use one of: fp16.",
        ),
        (["--converter-option", "overflow=wrap"], 1, "The fp16 converter has no overflow='wrap'. Use refuse or clamp."),
        (
            ["--converter-option", "speed=9"],
            1,
            "The converter 'fp16' (wanstore.conversion.fp16:Fp16Converter, of wansto",
        ),
        (["--converter-option", "overflow"], 2, "'overflow' is not NAME=VALUE"),
    ],
)
def test_a_wrong_converter_or_option_is_one_line(
    run: Run, tiny_fp32: Path, tmp_path: Path, options: list[str], expected: int, message: str
) -> None:
    """Before the source is looked at."""
    status, _, errors = run("setup", tiny_fp32, "--store", tmp_path / "store", *options)
    assert status == expected and message in errors, errors


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a sealed folder, `w`: the quick benchmarker does not look into it."""
    (tmp_path / "store" / "w").mkdir(parents=True)
    seal_as_is(tmp_path / "store" / "w")
    return tmp_path / "store"


QUICK = "from tests.testing.quick_benchmarker import QuickBenchmarker\n"
ENTRY = "[wanstore.benchmarkers]\nquick = MODULE:QuickBenchmarker\n"


def test_bench_runs_the_benchmarker_of_another_package(install: Install, run: Run, store: Path, tmp_path: Path) -> None:
    """Its report has no steps: single figures are columns, lists are left to the JSON."""
    install(QUICK, ENTRY)
    bench = ("bench", "w", "--store", store, "--benchmarker", "quick", "--rounds", "3", "--out", tmp_path / "page.md")
    status, output, errors = run(*bench, "--presets", "480p/5s,480p/3s")
    assert status == 0, errors
    table = output.splitlines()
    assert "preset result rounds megapixels" in " ".join(table[1].split()) and "page.json is written" in table[-1]
    assert "480p/5s ok 3" in " ".join(output.split()) and output.count("safe preset") == 1
    document = json.loads((tmp_path / "page.json").read_text())
    assert [row["preset"]["name"] for row in document["rows"]] == ["480p/5s", "480p/3s"]
    assert json.loads(run(*bench, "--presets", "480p/5s,480p/3s", "--json")[1]) == document
    assert not (tmp_path / "page.md").exists()


def test_bench_with_another_benchmarker_spares_a_report_of_wanstores_own(
    install: Install, run: Run, store: Path, tmp_path: Path
) -> None:
    """Unless it is asked to replace it. Its own report it replaces."""
    install(QUICK, ENTRY)
    (tmp_path / "page.json").write_text(BenchmarkReport(Environment("NVIDIA L4", 22.0, "long ago"), ()).to_json())
    bench = ("bench", "w", "--store", store, "--benchmarker", "quick", "--out", tmp_path / "page.md")
    status, _, errors = run(*bench)
    assert status == 1 and "page.json would be lost: it is of NVIDIA L4" in errors
    assert run(*bench, "--replace-page")[0] == run(*bench)[0] == 0
    assert "NVIDIA L4" not in (tmp_path / "page.json").read_text()


def test_bench_without_a_preset_that_worked_has_failed(install: Install, run: Run, store: Path, tmp_path: Path) -> None:
    """The reason is in the table."""
    install(QUICK, ENTRY)
    out = tmp_path / "page.md"
    status, output, errors = run(
        "bench", "w", "--store", store, "--benchmarker", "quick", "--presets", "480p/3s", "--size", "160000x160000",
        "--out", out,
    )  # fmt: skip
    assert status == 1 and "too large: " in output and "No preset worked" in errors


@pytest.mark.parametrize(
    ("source", "options", "expected", "message"),
    [
        (QUICK, ["--benchmarker", "none"], 1, "There is no benchmarker none"),
        (QUICK, ["--benchmarker", "quick", "--fresh"], 1, "got an unexpected keyword argument 'fresh')"),
        (QUICK, ["--benchmarker", "quick", "--compare", "/dev/null"], 2, "--compare reads reports of the benc"),
        ("QuickBenchmarker = dict", ["--benchmarker", "quick"], 1, "The benchmarker 'quick' (plugin_"),
        (
            QUICK + "class Q(QuickBenchmarker):\n    def run(self, presets, *, progress=None): return self\n"
            "    def to_json(self): return '{}'\nQuickBenchmarker = Q\n",
            ["--benchmarker", "quick"], 1, "The report of the benchmarker 'quick' lacks its rows",
        ),
    ],
)  # fmt: skip
def test_a_wrong_benchmarker_is_one_line(
    install: Install,
    run: Run,
    store: Path,
    tmp_path: Path,
    source: str,
    options: list[str],
    expected: int,
    message: str,
) -> None:
    """Nothing is written."""
    install(source, ENTRY)
    status, _, errors = run("bench", "w", "--store", store, "--out", tmp_path / "page.md", *options)
    assert status == expected and message in errors, errors
    assert not (tmp_path / "page.json").exists()
