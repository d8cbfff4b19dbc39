"""What the project says about itself is true."""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wanstore
from tests import ranges
from wanstore.cli import main
from wanstore.interfaces import Benchmarker, Converter, WeightStore

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def command_blocks(page: Path) -> str:
    """The fenced code of a page: what a reader copies and runs."""
    return "\n".join(re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), flags=re.DOTALL))


def tracked_files() -> list[Path]:
    """Every file that git tracks or would add."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_the_version_is_in_one_place() -> None:
    """The package's own version is the only one, and the changelog has a section and a link for it."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert project()["dynamic"] == ["version"] and tool["hatch"]["version"]["path"] == "wanstore/__init__.py"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{wanstore.__version__}]" in changelog and f"\n[{wanstore.__version__}]: https://" in changelog


def test_package_ships_its_types() -> None:
    """Type checkers read the package's own annotations."""
    assert (Path(wanstore.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_command_in_the_pages_is_a_target(page: Path) -> None:
    """`make X` in code that a reader copies, or in backquotes, is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", command_blocks(page), flags=re.MULTILINE))
    named |= set(re.findall(r"`make ([a-z]+)", page.read_text()))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_wanstore_command_in_the_pages_exists(page: Path) -> None:
    """A command line that a reader copies names a command and options that there are."""
    for line in re.findall(r"^wanstore .*(?:\n +.*)*", command_blocks(page), flags=re.MULTILINE):
        name, *words = re.findall(r"[^\s\[\]]+", line.split(" #")[0])[1:]
        assert name in main.commands, line
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_modal_program_in_the_pages_exists(page: Path) -> None:
    """`modal run X` and `modal deploy X` name a file of this repository."""
    programs = re.findall(r"modal (?:run|deploy) (?:--detach )?(\S+\.py)", page.read_text())
    assert not [program for program in programs if not (ROOT / program).is_file()]


def test_readme_shows_both_first_commands() -> None:
    """The first screen of the README names the two commands that a newcomer runs."""
    first_screen = (ROOT / "README.md").read_text().splitlines()[:30]
    assert any(line.startswith("make demo") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)


def test_every_variable_that_the_package_reads_is_in_the_table() -> None:
    """One page has them all, and no other."""
    sources = "\n".join(path.read_text() for path in Path(wanstore.__file__).parent.rglob("*.py"))
    table = re.findall(r"^\| `(WANSTORE_[A-Z_]+)` \|", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    assert sorted(table) == sorted(set(re.findall(r"WANSTORE_[A-Z_]+", sources)))


def test_links_between_the_repository_pages_lead_somewhere() -> None:
    """A link in README or CONTRIBUTING names a file that is there, also one by the repository's address."""
    for page in PAGES[:2]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name} links to {target}"
        for target in re.findall(r"https://github\.com/wanstore/wanstore/blob/main/([^)#\s]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name} links to {target}"


def test_whatever_pages_import_is_public() -> None:
    """Each `from wanstore... import NAME` in a page works, and names nothing private."""
    imports = re.findall(
        r"^from (wanstore[\w.]*) import (.+)$", "\n".join(map(command_blocks, PAGES)), flags=re.MULTILINE
    )
    assert imports
    for module, names in imports:
        for name in names.split(", "):
            assert "._" not in f"{module}.{name}"
            pkgutil.resolve_name(f"{module}:{name}")


@pytest.mark.parametrize("program", sorted((ROOT / "examples").rglob("*.py")), ids=lambda program: program.name)
def test_examples_import_nothing_private(program: Path) -> None:
    """What a reader copies from them is in the reference."""
    imports = re.findall(
        r"^ *(?:from|import) (wanstore[\w.]*)(?: import (.+))?$", program.read_text(), flags=re.MULTILINE
    )
    assert [part for part in imports if re.search(r"(^|[. ])_", " ".join(part))] == []


@pytest.mark.parametrize(
    ("group", "interface"),
    [("wanstore.stores", WeightStore), ("wanstore.converters", Converter), ("wanstore.benchmarkers", Benchmarker)],
)
def test_entry_points_resolve_to_their_interface(group: str, interface: type) -> None:
    """Each built-in backend can be imported by its entry point and is what the group promises."""
    entries = project()["entry-points"][group]
    assert entries
    for target in entries.values():
        assert issubclass(pkgutil.resolve_name(target), interface)


def test_script_resolves() -> None:
    """The `wanstore` command leads to something callable."""
    assert callable(pkgutil.resolve_name(project()["scripts"]["wanstore"]))


def test_pins_fit_the_ranges() -> None:
    """Development uses versions that pyproject.toml allows, and pins every direct dependency."""
    extras = project()["optional-dependencies"]
    required = project()["dependencies"] + extras["modal"] + extras["docs"] + extras["dev"]
    for requirement in map(Requirement, required):
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_every_dependency_is_tried_in_the_lowest_version_of_its_range() -> None:
    """By `make ranges`: each range begins with a version that it allows."""
    for requirement in map(Requirement, ranges.ranges().values()):
        (only,) = Requirement(ranges.lowest(str(requirement))).specifier
        assert only.operator == "==" and requirement.specifier.contains(only.version), requirement


def test_every_test_that_the_ranges_are_tried_by_is_there() -> None:
    """A test that has moved is named by its new path."""
    named = {path for one in ranges.rounds().values() for path in one.tests}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_page_names_what_a_laptop_without_torch_needs() -> None:
    """Just what `make ranges` tries there."""
    installed = re.findall(r"^pip install ([a-z][a-z ]+)", command_blocks(ROOT / "docs/how-to.md"), flags=re.MULTILINE)
    assert set(ranges.LAPTOP) == set(" ".join(installed).split()) - {"ipywidgets"}


def test_torch_is_pinned_first_and_torchvision_never() -> None:
    """torch decides what else fits, in constraints.txt as in the Makefile; torchvision is not wanted."""
    assert next(iter(pins())) == "torch"
    assert f"torch=={pins()['torch']}\n" in (ROOT / "Makefile").read_text()
    assert "torchvision" not in pins()


def test_no_file_names_a_place_on_someones_machine() -> None:
    """Paths of a developer's own machine do not get into the repository."""
    own_places = re.compile(rb"(?<![\w.}])/(work|root|home)/")
    hits = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192] and own_places.search(content):
            hits.append(path.relative_to(ROOT).as_posix())
    assert not hits
