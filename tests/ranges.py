"""The ranges of pyproject.toml and versions of Python, tried: `make ranges`. Needs only Python's standard library.

Each round has a virtual environment of its own below build/ranges/, with wanstore installed from its wheel, and runs a
copy of the tests in there, so that nothing of the checkout is imported.

    lowest    each direct dependency, those of the extras modal and object too, in the lowest version of its range
    newest    in the newest version that the ranges allow: the index is asked each time
    pinned    the versions of constraints.txt, for another Python: make ranges ROUNDS=pinned PYTHON=python3.13
    laptop    without torch, as docs/how-to.md says

torch has the version of constraints.txt in every round: each other one is gigabytes of CUDA libraries on an index
without builds for CPUs. An environment is used again, and made again when what goes into it changes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/ranges"
CHECKED = ("modal", "object")
"""The extras that a round has. The others are tools of those who work on wanstore."""
TOOLS = (
    "fastapi",
    "flask",
    "flask-cors",
    "hypothesis",
    "moto[s3]",
    "psutil",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
)
"""Of the extra dev, what the tests below need, with accelerate where there is torch: as constraints.txt has it."""
LAPTOP = ("attrs", "cattrs", "click", "filelock", "modal", "obstore", "rich")
"""What stores and the commands for them need."""

TESTS = (
    "tests/loading/test_parity.py",  # diffusers, transformers, safetensors: what from_pretrained builds, bit for bit
    "tests/loading/test_pipeline.py",
    "tests/lean_imports",  # and what is left out of their imports
    "tests/building/test_config.py",  # the types of their configs
    "tests/building/test_tokenizer.py",  # tokenizers
    "tests/memory/test_vae.py",
    "tests/conversion/test_folder.py",  # numpy, torch
    "tests/conversion/hub/test_client.py",  # huggingface_hub
    "tests/conversion/hub/test_xet.py",  # hf-xet
    "tests/test_setup_from_hub.py",
    "tests/test_manifest.py",  # attrs, cattrs
    "tests/test_generation.py",  # av
    "tests/cli/test_commands.py",  # click, rich, ftfy
    "tests/cli/test_without_torch.py",
    "tests/stores",  # filelock, modal against its control plane, obstore against moto
)
TESTS_WITHOUT_TORCH = (
    "tests/cli/test_without_torch.py",
    "tests/test_manifest.py",
    "tests/stores/modal/test_volume.py",
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""Of every process: none finds the checkout's own modules."""
VERSIONS = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(name, version(name), end=", ")
    except PackageNotFoundError:
        continue
"""


class Round(NamedTuple):
    """What pip installs into an environment before the wheel, and what is run there."""

    packages: tuple[str, ...]
    tests: tuple[str, ...]


def name_of(requirement: str) -> str:
    """The package that a requirement is for, as indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def ranges() -> dict[str, str]:
    """Of pyproject.toml, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in CHECKED for one in project["optional-dependencies"][extra]]
    return {name_of(one): one for one in project["dependencies"] + extras}


def pins() -> dict[str, str]:
    """Of constraints.txt, by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name_of(line): line for line in lines if line and not line.startswith("#")}


def lowest(requirement: str) -> str:
    """The same requirement for the lower bound of its range alone."""
    versions, mark, machines = requirement.partition(";")
    (bound,) = re.findall(r">=([\w.]+)", versions)
    return f"{name_of(versions)}=={bound}{mark}{machines}"


def rounds() -> dict[str, Round]:
    """All that there are, by name."""
    allowed, pinned = ranges(), pins()
    others = {name: requirement for name, requirement in allowed.items() if name != "torch"}
    tools = (*TOOLS, *(pinned[name_of(tool)] for tool in TOOLS))
    with_torch = (pinned["torch"], pinned["accelerate"], *tools)
    return {
        "lowest": Round((*with_torch, *map(lowest, others.values())), TESTS),
        "newest": Round((*with_torch, *others.values()), TESTS),
        "pinned": Round((*with_torch, *others, "--constraint", str(ROOT / "constraints.txt")), TESTS),
        "laptop": Round((*tools, *(allowed[name] for name in LAPTOP)), TESTS_WITHOUT_TORCH),
    }


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command, and show it first; `CalledProcessError` if it fails."""
    words = [str(one) for one in command]
    print("+", *words, flush=True)  # noqa: T201
    subprocess.run(words, cwd=cwd, env=ENVIRONMENT, check=True)


def install(folder: Path, packages: tuple[str, ...], torch_args: list[str]) -> Path:
    """An environment with the packages and wanstore in it; its Python."""
    made_from = "\n".join((sys.version, *torch_args, *packages))
    stamp, python = folder / "made-from.txt", folder / "bin/python"
    if not stamp.exists() or stamp.read_text() != made_from:
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
        stamp.write_text(made_from)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    torch = [one for one in packages if name_of(one) == "torch"]
    if torch:
        run(*pip, *torch_args, *torch)
    run(*pip, "--upgrade", "--upgrade-strategy", "eager", *packages)
    run(*pip, "--no-deps", "--force-reinstall", ROOT)
    if torch:
        run(python, "-m", "pip", "check")
    return python


def try_round(name: str, torch_args: list[str], workers: str) -> str:
    """Install what the round is made of, run its tests and, with torch, the demo; the versions that were there."""
    packages, tests = rounds()[name]
    major, minor, *_ = sys.version_info
    folder = BUILD / f"{name}-{major}.{minor}"
    python = install(folder, packages, torch_args)
    away = folder / "away"
    shutil.rmtree(away, ignore_errors=True)
    for part in ("tests", "docs"):
        shutil.copytree(ROOT / part, away / part)
    shutil.copy2(ROOT / "pyproject.toml", away)  # pytest's options
    run(python, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", *tests, cwd=away)
    if tests is TESTS:
        run(python.with_name("wanstore"), "demo", cwd=away)
    shutil.rmtree(away)
    command = [str(python), "-c", VERSIONS, *ranges()]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    return f"{name}, Python {sys.version.split()[0]}: {found.rstrip(', ')}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ranges", description=__doc__.partition("\n")[0])
    parser.add_argument("rounds", nargs="+", choices=list(rounds()))
    parser.add_argument("--torch-args", default="", help="what pip needs to find the build of torch that is wanted")
    parser.add_argument("--workers", default="auto", help="test processes at a time")
    options = parser.parse_args()
    results, failed = [], False
    for name in options.rounds:
        try:
            results.append(f"PASSED {try_round(name, options.torch_args.split(), options.workers)}")
        except subprocess.CalledProcessError as error:
            failed = True
            results.append(f"FAILED {name}: {' '.join(error.cmd[:6])} …")
    print(*results, sep="\n")  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
