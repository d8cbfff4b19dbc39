"""The command line as a new user tries it: a process of its own, exit statuses, one-line errors, JSON."""

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


def wanstore(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with no terminal."""
    command = [sys.executable, "-m", "wanstore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def json_of(*arguments: str | Path) -> Any:
    run = wanstore(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def store(tiny_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that `wanstore setup` filled with one pipeline, `w`."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    run = wanstore("setup", tiny_fp32, "--store", folder, "--name", "w")
    assert run.returncode == 0, run.stderr
    assert "sealed" in run.stdout
    return folder


def test_list_shows_what_is_stored(store: Path) -> None:
    """As a table for people and as JSON for programs."""
    assert "w" in wanstore("list", "--store", store).stdout
    assert [manifest["name"] for manifest in json_of("list", "--store", store)] == ["w"]


def test_the_store_may_come_from_the_environment(store: Path) -> None:
    """WANSTORE_STORE stands in for --store."""
    assert "w" in wanstore("list", WANSTORE_STORE=str(store)).stdout


def test_show_gives_source_conversion_and_files(store: Path) -> None:
    """The conversion record is summed up by component; --tensors adds each one."""
    text = wanstore("show", "w", "--store", store).stdout
    assert all(word in text for word in ("transformer", "text_encoder", "vae", "overflows", "model_index.json"))
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
        "--device", "cpu", "--memory", "streamed", "--out", clip,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "weights" in run.stdout and "memory: text_encoder streamed" in run.stdout
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


def test_a_second_setup_says_that_there_is_nothing_to_do(tiny_fp32: Path, store: Path) -> None:
    """And exits with 0."""
    run = wanstore("setup", tiny_fp32, "--store", store, "--name", "w")
    assert run.returncode == 0 and "nothing to do" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "nothing"], 1, "no pipeline 'nothing'"),
        (["show", "../escape"], 1, "cannot name a pipeline"),
        (["setup", "./no/such/folder"], 1, "no folder"),
        (["generate", "w", "--prompt", "x", "--preset", "1080p/9s"], 1, "480p/3s"),
        (["generate", "w", "--prompt", "x", "--size", "65x64"], 2, "multiple of 16"),
        (["generate", "w", "--prompt", "x", "--frames", "10"], 2, "4k+1"),
        (["generate", "w", "--prompt", "x", "--size", "wide"], 2, "WIDTHxHEIGHT"),
        (["generate", "w", "--prompt", "x", "--dtype", "vae"], 2, "not COMPONENT=DTYPE"),
        (["generate", "w", "--prompt", "x", "--dtype", "decoder=float32"], 1, "transformer, text_encoder, vae"),
        (["generate", "w", "--prompt", "x", "--memory", "little"], 2, "'auto', 'resident', 'streamed'"),
        (["generate", "w"], 2, "--prompt"),
        (["doctor", "w", "--preset", "480p/3s", "--memory-gib", "0.01"], 1, "by the smallest plan"),
        (["doctor", "w", "--preset", "8k/1h", "--memory-gib", "22"], 1, "There is no preset '8k/1h'"),
        (["doctor", "w", "--preset", "480p/3s", "--memory-gib", "22", "--dtype", "vae=int8"], 1, "float16 or float32"),
        (["doctor", "--preset", "480p/3s"], 2, "that with NAME"),
        (["doctor", "w", "--memory-gib", "22"], 2, "go with --preset"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_faults_are_told_without_a_traceback(store: Path, arguments: list[str], status: int, message: str) -> None:
    """Status 1 with one line for failures, 2 for wrong usage."""
    run = wanstore(*arguments, WANSTORE_STORE=str(store))
    assert run.returncode == status, run.stderr
    assert "Traceback" not in run.stderr
    assert status == 2 or len(run.stderr.splitlines()) == 1
    assert message in run.stderr


def test_an_unknown_scheme_is_one_line(tiny_fp32: Path) -> None:
    """It says which schemes there are, and that others can be installed."""
    run = wanstore("setup", tiny_fp32, "--store", "s3://bucket")
    assert run.returncode == 1 and "Install a package" in run.stderr and len(run.stderr.splitlines()) == 1


def test_help_and_list_import_no_torch(store: Path) -> None:
    """The command line stays quick."""
    for arguments in (["--help"], ["list", "--store", str(store)], ["verify", "w", "--store", str(store)]):
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
    found = json_of("doctor", "--folder", tmp_path)
    assert found.keys() >= {"memory", "gpu", "disk", "speed", "attention", "versions"}
    assert "GB/s" in found["speed"]["page cache to memory"]
    assert not list(tmp_path.iterdir())


def test_doctor_says_how_close_a_load_gets(store: Path, tmp_path: Path) -> None:
    """To what bounds it on this machine."""
    found = json_of("doctor", "w", "--store", store, "--folder", tmp_path)
    assert found["load"].keys() == {"ready after", "weights", "of the ceiling"}
    assert re.fullmatch(r"\d+% \((page cache|disk|PCIe), [\d.]+ GB/s\)", found["load"]["of the ceiling"])
    run = wanstore("doctor", "w", "--folder", tmp_path)
    assert run.returncode == 2 and "--store" in run.stderr


def test_doctor_tells_the_plan_of_a_presets_memory(store: Path) -> None:
    """For a device that need not be here, with the peak of each stage; a smaller one needs another plan."""
    ask = ("doctor", "w", "--store", store, "--preset", "480p/3s", "--memory-gib")
    roomy = json_of(*ask, "22")
    assert roomy.keys() == {"preset", "free", "plan", "peaks"}
    assert (roomy["preset"], roomy["free"], roomy["plan"]) == ("480p/3s", "22.0 GiB", "all resident")
    assert roomy["peaks"].keys() == {"text", "denoising", "decoding", "output"}
    assert json_of(*ask, "0.4")["plan"] != "all resident"
    assert gib(json_of(*ask, "22", "--dtype", "vae=float32")["peaks"]) > gib(roomy["peaks"])
    assert "decoding 0." in wanstore(*ask, "22").stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own free memory would be taken")
def test_without_a_gpu_doctor_must_be_told_the_memory(store: Path) -> None:
    """It says how."""
    run = wanstore("doctor", "w", "--store", store, "--preset", "480p/3s")
    assert run.returncode == 2 and "--memory-gib" in run.stderr and "Traceback" not in run.stderr


def gib(peaks: dict[str, str]) -> float:
    return float(peaks["decoding"].removesuffix(" GiB"))
