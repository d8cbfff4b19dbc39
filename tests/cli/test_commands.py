"""The command line as a new user tries it: exit statuses, one-line errors, JSON.

In a process of its own where that matters or is seen; faults, of which there are many, are met in this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from tests.cli.in_here import in_here
from wanstore.api import serving
from wanstore.cli import _doctor as doctor
from wanstore.manifest import CONVERSION_NAME


def wanstore(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with no terminal."""
    command = [sys.executable, "-m", "wanstore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def json_of(*arguments: str | Path) -> Any:
    run = wanstore(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def source(tiny_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with brackets and colons in its name."""
    return Path(shutil.copytree(tiny_fp32, tmp_path_factory.mktemp("source") / "wan [fp32] :cat:"))


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that `wanstore setup` filled with one pipeline, `w`."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    run = wanstore("setup", source, "--store", folder, "--name", "w")
    assert run.returncode == 0, run.stderr
    assert "sealed" in run.stdout
    return folder


def test_list_shows_what_is_stored(store: Path) -> None:
    """As a table for people and as JSON for programs."""
    assert "w" in wanstore("list", "--store", store).stdout
    assert [manifest["name"] for manifest in json_of("list", "--store", store)["pipelines"]] == ["w"]


def test_list_shows_what_cannot_be_read_and_succeeds(store: Path, tmp_path: Path) -> None:
    """A warning for people, an entry for programs; terminal escapes in a name are shown, not obeyed."""
    shutil.copytree(store / "w", tmp_path / "w")
    shutil.copytree(store / "w", tmp_path / "bad\x1b[2J")
    shutil.copytree(store / "w", tmp_path / "newer")
    manifest = tmp_path / "newer" / "wanstore.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    run = wanstore("list", "--store", tmp_path)
    assert run.returncode == 0 and "Wan" not in run.stderr and " w " in run.stdout
    assert r"wanstore: bad\x1b[2J cannot be read: " in run.stderr and "\x1b" not in run.stdout + run.stderr
    assert "schema version 99, this wanstore reads up to 2" in run.stderr
    document = json_of("list", "--store", tmp_path)
    assert [one["name"] for one in document["unreadable"]] == ["bad\x1b[2J", "newer"]
    assert [one["name"] for one in document["pipelines"]] == ["w"]


def test_a_closed_stdout_is_one_line(store: Path) -> None:
    """Its number would go to the next file that is opened."""
    run = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m wanstore list --store {store} >&-"], capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr == "wanstore: stdout is closed. Send it to a file, or to /dev/null.\n"


def test_a_broken_library_is_one_line_and_doctor_names_it(source: Path, tmp_path: Path) -> None:
    """Such as a torchvision for another torch, which diffusers imports where it is installed."""
    (tmp_path / "torchvision-0.29.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.29.0.dist-info/METADATA").write_text("Name: torchvision\nVersion: 0.29.0\n")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    broken = {"PYTHONPATH": str(tmp_path), "WANSTORE_PLAIN_IMPORTS": "1"}
    run = wanstore("demo", "--folder", tmp_path / "demo", **broken)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1
    assert "operator torchvision::nms does not exist" in run.stderr and "wanstore doctor" in run.stderr
    run = wanstore("doctor", "--folder", tmp_path, **broken)
    assert run.returncode == 0 and "torchvision is broken (operator torchvision::nms does not exist)" in run.stdout


def test_a_store_with_nothing_readable_does_not_say_that_it_is_empty(store: Path, tmp_path: Path) -> None:
    """Nobody should make it all again because of that."""
    shutil.copytree(store / "w", tmp_path / "w")
    (tmp_path / "w" / "wanstore.json").write_text("{")
    run = wanstore("list", "--store", tmp_path)
    assert run.returncode == 0 and "w cannot be read" in run.stderr and "Nothing is stored" not in run.stderr


def test_tables_show_brackets_and_colons_as_they_are(store: Path) -> None:
    """They are no markup, and no pictures."""
    assert "wan [fp32] :cat:" in in_here("list", "--store", store).stdout
    assert "wan [fp32] :cat: (folder)" in in_here("show", "w", "--store", store).stdout


def test_the_store_may_come_from_the_environment(store: Path) -> None:
    """WANSTORE_STORE stands in for --store."""
    assert "w" in wanstore("list", WANSTORE_STORE=str(store)).stdout


def test_a_missing_store_is_wrong_usage_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was done."""
    monkeypatch.delenv("WANSTORE_STORE", raising=False)
    for command in (["list"], ["verify", "w"], ["doctor", "w"]):
        run = in_here(*command)
        assert run.exit_code == 2 and "WANSTORE_STORE" in run.stderr


def test_show_says_how_clips_are_made(store: Path) -> None:
    """By the model that was noted, and which recipe it is where none was."""
    shown = " ".join(in_here("show", "w", "--store", store).stdout.split())
    assert "50 steps, guidance 6, flow shift 8: the model is not recorded" in shown
    assert json_of("show", "w", "--store", store)["clips"]["model"] == "T2V-1.3B"


def test_show_gives_source_conversion_and_files(store: Path) -> None:
    """The conversion record is summed up by component; --tensors adds each one."""
    text = wanstore("show", "w", "--store", store).stdout
    assert all(word in text for word in ("transformer", "text_encoder", "vae", "overflows", "model_index.json"))
    assert " by fp16, overflow refuse " in " ".join(text.split()), "options as words, no dict of Python's"
    shown = json_of("show", "w", "--store", store, "--tensors")
    assert shown["conversion"]["components"]["vae"]["tensors"] == len(shown["tensors"]["vae"])


def test_verify_passes_a_whole_pipeline_and_names_a_damaged_file(store: Path, tmp_path: Path) -> None:
    """Status 0 and 1; the file is named."""
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    assert wanstore("verify", "w", "--store", copy).returncode == 0
    path = next((copy / "w/vae").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    run = wanstore("verify", "w", "--store", copy)
    assert run.returncode == 1 and f"damaged: vae/{path.name}" in run.stdout
    failed = wanstore("verify", "w", "--store", copy, "--json")
    assert failed.returncode == 1 and json.loads(failed.stdout)["damaged"] == [f"vae/{path.name}"]


def test_generate_writes_an_mp4_at_16_frames_a_second(store: Path, tmp_path: Path) -> None:
    """A tiny clip on a CPU; the load's phases are printed, and how memory was shared out."""
    clip = tmp_path / "clip.mp4"
    run = wanstore(
        "generate", "w", "--store", store, "--prompt", "a cat", "--size", "64x64", "--frames", "9", "--steps", "2",
        "--device", "cpu", "--memory", "offload", "--out", clip,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "weights" in run.stdout and "memory: text_encoder offloaded" in run.stdout
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, str(stream.average_rate), stream.width, stream.height) == (9, "16", 64, 64)


def test_delete_removes_and_a_second_delete_says_it_is_gone(store: Path, tmp_path: Path) -> None:
    """The second is an error of one line that says where to look."""
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    assert wanstore("delete", "w", "--store", copy).returncode == 0
    run = wanstore("delete", "w", "--store", copy)
    assert run.returncode == 1 and "wanstore list" in run.stderr and len(run.stderr.splitlines()) == 1


def test_a_second_setup_says_that_there_is_nothing_to_do(source: Path, store: Path) -> None:
    """And exits with 0."""
    run = wanstore("setup", source, "--store", store, "--name", "w")
    assert run.returncode == 0 and "nothing to do" in run.stderr


ABSURD = ["generate", "w", "--prompt", "x", "--size", "16000000x16000000", "--frames", "5", "--steps", "1"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "nothing"], 1, "no pipeline 'nothing'"),
        (["show", "../escape"], 1, "cannot name a pipeline"),
        (["setup", "./no/such/folder"], 1, "no folder"),
        (["generate", "w", "--prompt", "x", "--preset", "1080p/9s"], 2, "480p/3s"),
        (["generate", "w", "--prompt", "x", "--size", "65x64"], 2, "multiple of 16"),
        (["generate", "w", "--prompt", "x", "--frames", "10"], 2, "4k+1"),
        (["generate", "w", "--prompt", "x", "--size", "wide"], 2, "WIDTHxHEIGHT"),
        (["generate", "w", "--prompt", "x", "--guidance", "nan"], 2, "--guidance"),
        (["generate", "w", "--prompt", "x", "--flow-shift", "0"], 2, "--flow-shift"),
        (["generate", "w", "--prompt", "x", "--dtype", "vae"], 2, "not COMPONENT=DTYPE"),
        (["generate", "w", "--prompt", "x", "--dtype", "decoder=float32"], 2, "transformer, text_encoder, vae"),
        (["generate", "w", "--prompt", "x", "--dtype", "vae=float64"], 2, "float16 or float32"),
        (["generate", "w", "--prompt", "x", "--memory", "little"], 2, "'auto', 'resident', 'offload'"),
        (["generate", "w", "--prompt", "x", "--device", "bogus"], 2, "neither cpu nor cuda"),
        (["generate", "w", "--prompt", "x", "--device", "meta"], 2, "neither cpu nor cuda"),
        (["generate", "w", "--prompt", "x", "--device", "cuda:999"], 1, "There is no device cuda:999"),
        (["generate", "w", "--prompt", "x", "--seed", "99999999999999999999999"], 2, "not in the range"),
        (["generate", "w", "--prompt", "x", "--out", f"{__file__}/clip.mp4"], 1, "Choose another path"),
        ([*ABSURD, "--device", "cpu"], 1, "takes more memory than is free"),
        (["generate", "w"], 2, "--prompt"),
        (["generate", "w", "--prompt", "x", "--out", ""], 2, "it is empty"),
        (["list", "--store", ""], 2, "it is empty"),
        (["setup", ""], 2, "it is empty"),
        (["setup", ".", "--keep-source", ""], 2, "it is empty"),
        (["setup", ".", "--store", f"{__file__}/store"], 1, "Check the path"),
        (["doctor", "w", "--store", "file://"], 2, "it is empty"),
        (["doctor", ""], 1, "cannot name a pipeline"),
        (["doctor", "w", "--preset", "480p/3s", "--memory-gib", "nan"], 2, "not a finite number"),
        (["doctor", "w", "--preset", "480p/3s", "--memory-gib", "inf"], 2, "not a finite number"),
        (["doctor", "w", "--preset", "480p/3s", "--memory-gib", "0.01"], 1, "under the smallest plan"),
        (["doctor", "w", "--preset", "8k/1h", "--memory-gib", "22"], 2, "There is no preset '8k/1h'"),
        (["doctor", "w", "--preset", "480p/3s", "--memory-gib", "22", "--dtype", "vae=int8"], 2, "float16 or float32"),
        (["doctor", "--preset", "480p/3s"], 2, "that with NAME"),
        (["doctor", "w", "--memory-gib", "22"], 2, "go with --preset"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_faults_are_told_without_a_traceback(store: Path, arguments: list[str], status: int, message: str) -> None:
    """Status 1 with one line for failures, 2 for wrong usage."""
    run = in_here(*arguments, WANSTORE_STORE=str(store))
    assert run.exit_code == status, run.stderr
    assert status == 2 or len(run.stderr.splitlines()) == 1
    assert message in run.stderr


def test_a_place_for_the_clip_is_tried_before_anything_is_loaded(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is made by then."""
    monkeypatch.setattr(serving, "load", lambda *_, **__: pytest.fail("it was loaded"))
    generate = ("generate", "w", "--store", store, "--prompt", "x", "--out")
    run = in_here(*generate, "/proc/clip.mp4")
    assert run.exit_code == 1 and "/proc/clip.mp4: No such file or directory. Check the path." in run.stderr
    monkeypatch.setattr(serving, "load", lambda *_, **__: sys.exit(3))
    assert in_here(*generate, tmp_path / "new/clip.mp4").exit_code == 3
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("content", [None, "{", "[]", '{"tensors": {"vae": [{"name": "no more"}]}}'])
def test_damaged_records_of_tensors_are_told(store: Path, tmp_path: Path, content: str | None) -> None:
    """The rest of what `show` shows does not need them."""
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    record = copy / "w" / CONVERSION_NAME
    record.unlink() if content is None else record.write_text(content)
    run = in_here("show", "w", "--store", copy, "--tensors")
    assert run.exit_code == 1 and "Run setup again with --replace" in run.stderr and len(run.stderr.splitlines()) == 1
    assert in_here("show", "w", "--store", copy).exit_code == 0


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    ("command", "interrupt", "then"),
    [
        ("setup", INTERRUPT, "it resumes"),
        ("setup", f"exec({INTERRUPT!r}, globals())", "it resumes"),  # Python has an eye on such
        ("setup", f"""
    try:
        {INTERRUPT}
    except KeyboardInterrupt:
        raise ImportError("half of numpy is missing")""", "it resumes"),
        ("generate", INTERRUPT, "it starts from the beginning"),
    ],
)  # fmt: skip
def test_ctrl_c_is_one_line_and_status_1(tmp_path: Path, command: str, interrupt: str, then: str) -> None:
    """Wherever it comes: in source text that is executed, too, or where a library makes another error of it."""
    program = f"""
import os, signal
import wanstore.cli, wanstore.api.serving, wanstore.api.storing
def stopped(*_, **__):
    {interrupt}
wanstore.api.storing.setup = wanstore.api.serving.load = stopped
wanstore.cli.main({[command, "x", "--store", "y", *(["--prompt", "z"] if command == "generate" else [])]!r})
"""
    (tmp_path / "program.py").write_text(program)
    python = [sys.executable, "-m", "program"]
    run = subprocess.run(python, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (1, f"wanstore: Interrupted. Run the same command again: {then}.\n")


def test_help_shows_each_example_on_a_line() -> None:
    """As it is to be typed."""
    lines = [line.strip() for line in in_here("--help").stdout.splitlines()]
    assert [line.split()[:2] for line in lines if line.startswith("wanstore ")] == [
        ["wanstore", "setup"], ["wanstore", "generate"],
    ]  # fmt: skip
    assert not [line for line in lines if "\b" in line or "\\b" in line]


def test_an_unknown_scheme_is_one_line(tiny_fp32: Path) -> None:
    """It says which schemes there are, and that others can be installed."""
    run = wanstore("setup", tiny_fp32, "--store", "ftp://bucket")
    assert run.returncode == 1 and "Install a package" in run.stderr and len(run.stderr.splitlines()) == 1


def test_what_needs_no_torch_does_not_import_it(store: Path) -> None:
    """The command line stays quick. What measures and what compiles leave it to their processes."""
    place = ["--store", str(store)]
    for arguments in (
        ["--help"], ["list", *place], ["verify", "w", *place], ["bench", "w", *place, "--out", "/proc/page.md"],
        ["compile", "x", *place],
    ):  # fmt: skip
        code = f"""
import sys
from wanstore.cli import main
try:
    main({arguments!r})
except SystemExit:
    assert "torch" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_doctor_tells_what_the_machine_can_do(tmp_path: Path) -> None:
    """Memory, disk, speeds, GPU, attention and versions, as one JSON document."""
    found = json.loads(in_here("doctor", "--folder", tmp_path, "--json").stdout)
    assert found.keys() >= {"machine", "gpu", "disk", "speed", "attention", "versions"}
    assert found["speed"]["bytes_a_second"]["page_cache_to_memory"] > 0 and not found["speed"]["reason"]
    assert not list(tmp_path.iterdir())


def test_doctor_says_how_close_a_load_gets(store: Path, tmp_path: Path) -> None:
    """To what bounds it on this machine."""
    told = in_here("doctor", "w", "--store", store, "--folder", tmp_path).stdout
    assert re.search(r"load  ready after [\d.]+ s, bound by ", told) and re.search(r"compiler  of C(\+\+)? ", told)
    assert re.search(r" of the ceiling \d+% \((page cache|disk|PCIe), [\d.]+ GB/s\)\n", told)
    run = wanstore("doctor", "w", "--folder", tmp_path)
    assert run.returncode == 2 and "--store" in run.stderr


def test_doctor_looks_for_the_pipeline_before_it_measures(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is misspelt is told at once."""
    monkeypatch.setattr(doctor, "measure", lambda _: pytest.fail("it measures"))
    run = in_here("doctor", "x", "--store", store)
    assert run.exit_code == 1 and "no pipeline 'x'" in run.stderr


def test_doctor_loads_the_pipeline_where_nothing_can_be_measured(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is nearly full: it says so."""
    monkeypatch.setattr(doctor, "_SAMPLE_BYTES", 1 << 60)
    found = json.loads(in_here("doctor", "w", "--store", store, "--folder", tmp_path, "--json").stdout)
    assert found["speed"]["reason"] == "the disk is nearly full" and not any(found["speed"]["bytes_a_second"].values())
    assert found["load"]["seconds"] > 0 and found["load"]["ceiling"] is None
    told = in_here("doctor", "w", "--store", store, "--folder", tmp_path).stdout
    assert "speed  not measured: the disk is nearly full\n" in told and "not known: no speed was measured" in told


def test_doctor_in_a_folder_that_cannot_be_written_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder will do."""
    monkeypatch.setattr(doctor, "_SAMPLE_BYTES", 0)  # /proc has no room at all
    run = in_here("doctor", "--folder", "/proc")
    assert run.exit_code == 1 and "measured in /proc (" in run.stderr and "--folder" in run.stderr


def test_doctor_tells_the_plan_of_a_presets_memory(store: Path) -> None:
    """For a device that need not be here, with the peak of each stage; a smaller one needs another plan."""
    ask = ("doctor", "w", "--store", store, "--preset", "480p/3s", "--memory-gib")
    roomy = json_of(*ask, "22")
    assert (roomy["preset"], roomy["free_bytes"], roomy["plan"]) == ("480p/3s", 22 << 30, "all resident")
    assert roomy["peak_bytes"].keys() == {"text_encoding", "denoising", "decoding", "output"}
    assert json_of(*ask, "0.4")["plan"] != "all resident"
    wide = json_of(*ask, "22", "--dtype", "vae=float32")
    assert wide["peak_bytes"]["decoding"] > roomy["peak_bytes"]["decoding"]
    told = wanstore(*ask, "22").stdout
    assert "free  22.0 GiB\n" in told and "decoding 0." in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own free memory would be taken")
def test_without_a_gpu_doctor_must_be_told_the_memory(store: Path) -> None:
    """It says how."""
    run = wanstore("doctor", "w", "--store", store, "--preset", "480p/3s")
    assert run.returncode == 2 and "--memory-gib" in run.stderr and "Traceback" not in run.stderr


def test_copy_puts_a_pipeline_into_another_store(store: Path, tmp_path: Path) -> None:
    """And says what it did; what cannot be is one line."""
    run = wanstore("copy", "w", "--from", store, "--to", tmp_path / "there")
    assert run.returncode == 0 and run.stdout.startswith("w: ") and str(tmp_path) in run.stdout
    assert in_here("verify", "w", "--store", tmp_path / "there").exit_code == 0
    again = wanstore("copy", "w", "--from", store, "--to", tmp_path / "there")
    assert again.returncode == 0 and "nothing to do" in again.stderr
    wrong = wanstore("copy", "x", "--from", store, "--to", tmp_path / "there")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1


def test_report_writes_a_page_with_what_it_is_given(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named after the pipeline, in the current folder; a load from its file, or measured."""
    monkeypatch.chdir(tmp_path)
    clip = ("--size", "64x64", "--frames", "5", "--steps", "1", "--device", "cpu")
    made = in_here("generate", "w", "--store", store, "--prompt", "a cat", *clip, "--json")
    Path("load.json").write_text(made.stdout)
    run = in_here("report", "w", "--store", store, "--load-report", "load.json")
    assert run.exit_code == 0 and run.stdout == "w-report.html is written\n"
    assert "bound by" in Path("w-report.html").read_text()
    assert in_here("report", "w", "--store", store, "--measure-load", "--out", "other.html").exit_code == 0
    assert "bound by" in Path("other.html").read_text()


def test_report_tells_files_that_are_something_else(store: Path, tmp_path: Path) -> None:
    """And that a load is either given or measured."""
    (tmp_path / "x.json").write_text("{}")
    report = ("report", "w", "--store", store, "--out", tmp_path / "page.html")
    for option, told in (("--load-report", "not a load report"), ("--benchmarks", "not a benchmark report")):
        run = in_here(*report, option, tmp_path / "x.json")
        assert run.exit_code == 1 and told in run.stderr and len(run.stderr.splitlines()) == 1
    both = in_here(*report, "--load-report", tmp_path / "x.json", "--measure-load")
    assert both.exit_code == 2 and "exclude each other" in both.stderr
    assert not (tmp_path / "page.html").exists()


# --- compiled functions


def test_compile_says_what_is_there_already(compiled_store: Path) -> None:
    """And that is all."""
    small = ("--presets", "480p/3s", "--size", "32x32", "--frames", "5", "--device", "cpu")
    run = wanstore("compile", "w", "--store", compiled_store, *small)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "480p/3s: is there already\n"


def test_compile_without_a_compiler_is_one_line(store: Path) -> None:
    """And status 1; the store is as it was."""
    size = ("--presets", "480p/3s", "--size", "32x32", "--frames", "5", "--device", "cpu")
    run = wanstore("compile", "w", "--store", store, *size, "--json", PATH="/nowhere")
    assert run.returncode == 1 and run.stderr.startswith("wanstore: Nothing could be compiled.")
    (preset,) = json.loads(run.stdout)["presets"]
    assert preset["status"] == "failed" and "No working C++ compiler found" in preset["reason"]
    assert not list(store.glob("*.compiled-*"))


def test_functions_are_listed_with_their_pipeline_and_deleted_with_it(compiled_copy: Path) -> None:
    """They are none of the pipelines. One whose pipeline is gone is listed, so that it can be deleted."""
    (folder,) = compiled_copy.glob("w.compiled-*")
    listed = json.loads(in_here("list", "--store", compiled_copy, "--json").stdout)
    assert [one["name"] for one in listed["pipelines"]] == ["w"]
    shown = json.loads(in_here("show", "w", "--store", compiled_copy, "--json").stdout)
    assert [one["name"] for one in shown["compiled"]] == [folder.name]
    text = in_here("show", "w", "--store", compiled_copy).stdout
    assert "compiled functions" in text and "1x8 tokens" in text
    shutil.copytree(folder, compiled_copy / "gone.compiled-0")
    assert in_here("delete", "w", "--store", compiled_copy).exit_code == 0
    assert [path.name for path in compiled_copy.iterdir() if path.name[0] != "."] == ["gone.compiled-0"]
    assert "gone.compiled-0" in in_here("list", "--store", compiled_copy).stdout


def test_generate_uses_them_when_asked(compiled_store: Path, tmp_path: Path) -> None:
    """The load's report says so."""
    run = in_here(
        "generate", "w", "--store", compiled_store, "--prompt", "a cat", "--size", "32x32", "--frames", "5",
        "--steps", "1", "--device", "cpu", "--compile", "cached", "--out", tmp_path / "clip.mp4",
    )  # fmt: skip
    assert run.exit_code == 0 and "blocks compiled for 1x8 tokens" in run.stdout
