"""`load` checks before it builds, says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from wanstore._formats._json import to_json
from wanstore.building._skeleton import expected_tensors
from wanstore.errors import DamagedError, NotFoundError, NotSupportedError
from wanstore.loading._load import load_folder as load
from wanstore.manifest import MANIFEST_NAME
from wanstore.testing.manifests import seal_as_is
from wanstore.testing.tiny_wan import TEXT_ENCODER, TRANSFORMER, VAE

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
PHASES = ["check", "imports", "weights", "skeleton", "assign", "tokenizer", "pipeline", "attention"]
CUDA = torch.cuda.is_available()


class Heard:
    """A `Progress` that adds up."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.finished: list[str] = []
        self.lock = threading.Lock()

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.totals[task], self.done[task] = total, 0

    def advance(self, task: str, amount: int) -> None:
        with self.lock:
            self.done[task] += amount

    def finish(self, task: str) -> None:
        self.finished.append(task)

    def message(self, text: str) -> None: ...


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a safetensors file says of itself, its data untouched."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)


# --- what a load gives


def test_a_sealed_folder_loads_with_a_report(tiny_sealed: Path) -> None:
    """Every phase is timed, and the weights' bytes are counted; they move while other things are done."""
    report = load(tiny_sealed, device="cpu").load_report
    assert [phase.name for phase in report.phases] == PHASES
    assert report.size_bytes == report.phase("weights").size_bytes > 1_000_000
    one_after_another = [phase for phase in report.phases if phase.name != "weights"]
    assert report.seconds >= sum(phase.seconds for phase in one_after_another)
    assert report.phase("weights").began_seconds < report.phase("skeleton").began_seconds
    assert report.bound_by
    assert report.transfer
    assert report.transfer.size_bytes == report.size_bytes
    assert (report.device, report.folder) == ("cpu", str(tiny_sealed))
    assert report._repr_html_() == f"<pre>{report}</pre>", "a notebook shows the table"
    assert to_json(report)["phases"][0]["name"] == "check"
    assert str(report).splitlines()[-2].startswith("total")
    with pytest.raises(KeyError):
        report.phase("coffee")


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
def test_without_cuda_the_device_is_the_cpu(tiny_sealed: Path) -> None:
    """And asking for CUDA says that there is none."""
    assert load(tiny_sealed).device == torch.device("cpu")
    with pytest.raises(NotSupportedError, match="no device cuda"):
        load(tiny_sealed, device="cuda")
    with pytest.raises(NotSupportedError, match="no device toaster"):
        load(tiny_sealed, device="toaster")


def test_a_device_that_holds_no_weights_is_refused(tiny_sealed: Path) -> None:
    """torch has such a device, meta."""
    with pytest.raises(NotSupportedError, match=r"device meta\. Use cpu or cuda"):
        load(tiny_sealed, device="meta")


@pytest.mark.gpu
def test_on_cuda_every_bit_is_the_cpus(tiny_fp32: Path) -> None:
    """Casting on the device gives what casting on the CPU gives."""
    pipes = [load(tiny_fp32, device=device, sealed=False) for device in ("cpu", "cuda")]
    for name in ("text_encoder", "transformer", "vae"):
        held, there = (getattr(pipe, name) for pipe in pipes)
        assert all(buffer.is_cuda for buffer in there.buffers())
        for key, tensor in held.state_dict().items():
            moved = there.state_dict()[key]
            assert moved.is_cuda
            assert torch.equal(moved.cpu(), tensor), key


def test_progress_hears_every_byte(tiny_sealed: Path) -> None:
    """First of the hashes, then of the weights."""
    heard = Heard()
    load(tiny_sealed, device="cpu", verify=True, progress=heard)
    assert heard.finished == ["verify tiny", "load tiny"]
    assert heard.done == heard.totals


def test_the_processs_settings_are_as_before(tiny_sealed: Path) -> None:
    """Default dtype and the libraries' log levels."""
    import logging

    before = torch.get_default_dtype(), [logging.getLogger(n).level for n in ("diffusers", "transformers")]
    load(tiny_sealed, device="cpu")
    assert before == (
        torch.get_default_dtype(), [logging.getLogger(n).level for n in ("diffusers", "transformers")]
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_file_or_mapping_is_left(tiny_sealed: Path) -> None:
    """A snapshot of the process holds nothing of the folder but values, also after a failed load."""
    load(tiny_sealed, device="cpu")  # libraries open what they keep open
    threads, files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    pipe = load(tiny_sealed, device="cpu", verify=True)
    change_header(tiny_sealed / VAE_FILE, lambda header: header.popitem())
    with pytest.raises(DamagedError):
        load(tiny_sealed, device="cpu", sealed=False)
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert str(tiny_sealed) not in Path("/proc/self/maps").read_text()
    assert pipe.load_report.seconds > 0


def test_weights_survive_the_deletion_of_the_folder(tiny_sealed: Path) -> None:
    """They are the process's own memory."""
    pipe = load(tiny_sealed, device="cpu")
    before = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    for path in tiny_sealed.rglob("*.safetensors"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    shutil.rmtree(tiny_sealed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.vae.state_dict().items())


def test_importing_load_is_light() -> None:
    """Neither torch nor diffusers comes with it."""
    code = (
        "import sys; from wanstore import load;"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    run_python(code)


def test_a_load_prints_nothing(tiny_sealed: Path) -> None:
    """No progress bar, no warning: not even for a config with a key that nobody knows."""
    change_json(tiny_sealed / "vae" / "config.json", nobody_knows=1)
    code = "import sys; from wanstore import load; load(sys.argv[1], device='cpu', sealed=False)"
    done = run_python(code, str(tiny_sealed))
    assert (done.stdout, done.stderr) == ("", "")


# --- sealed folders


def test_an_unsealed_folder_is_refused_with_the_way_out(tiny_copy: Path) -> None:
    """The error names the argument that loads it."""
    with pytest.raises(NotFoundError, match="sealed=False"):
        load(tiny_copy)


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    """Sealed or not."""
    for sealed in (True, False):
        with pytest.raises(NotFoundError, match="no folder"):
            load(tmp_path / "nowhere", sealed=sealed)


def test_a_folder_without_a_pipeline_is_not_found(tmp_path: Path) -> None:
    """It is a folder, but not one of ours."""
    with pytest.raises(NotFoundError, match=r"model_index\.json"):
        load(tmp_path, sealed=False)


def test_all_bad_files_are_named_at_once(tiny_sealed: Path) -> None:
    """Missing, shortened, replaced by a link, and one too many."""
    (tiny_sealed / "tokenizer" / "tokenizer.json").unlink()
    os.truncate(tiny_sealed / VAE_FILE, 1000)
    moved = tiny_sealed.parent / "elsewhere.json"
    (tiny_sealed / "vae" / "config.json").rename(moved)
    (tiny_sealed / "vae" / "config.json").symlink_to(moved)
    (tiny_sealed / "vae" / "more.safetensors").touch()
    with pytest.raises(DamagedError) as caught:
        load(tiny_sealed)
    for words in ("tokenizer/tokenizer.json is missing", f"{VAE_FILE} has 1000 bytes", "vae/config.json is not a",
                  "vae/more.safetensors does not belong"):  # fmt: skip
        assert words in caught.value.what


def test_verify_finds_flipped_bits_that_sizes_hide(tiny_sealed: Path) -> None:
    """Every file with one is named."""
    names = [VAE_FILE, "scheduler/scheduler_config.json"]
    for name in names:
        raw = bytearray((tiny_sealed / name).read_bytes())
        raw[-2] ^= 0x20
        (tiny_sealed / name).write_bytes(raw)
    with pytest.raises(DamagedError) as caught:
        load(tiny_sealed, verify=True)
    assert all(f"{name} has another SHA-256" in caught.value.what for name in names)


def test_an_unsealed_folder_cannot_be_verified(tiny_copy: Path) -> None:
    """Asking for it is an error, not a check that is silently left out."""
    with pytest.raises(NotSupportedError, match="no hashes"):
        load(tiny_copy, verify=True, sealed=False)


def test_an_altered_manifest_is_refused(tiny_sealed: Path) -> None:
    """Its digest covers what it says."""
    change_json(tiny_sealed / MANIFEST_NAME, recipe="another")
    with pytest.raises(DamagedError, match="digest"):
        load(tiny_sealed)


def test_a_sealed_folder_whose_manifest_vouches_for_damage_is_still_checked(tiny_copy: Path) -> None:
    """A manifest proves who wrote the bytes, not that they fit."""
    rewrite(tiny_copy / VAE_FILE, lambda tensors: tensors.popitem())
    seal_as_is(tiny_copy)
    with pytest.raises(DamagedError, match="is in none of its files"):
        load(tiny_copy, verify=True)


# --- weight files that are wrong


def refused(folder: Path, *words: str) -> None:
    """Loading fails with one error that has all the words."""
    with pytest.raises(DamagedError) as caught:
        load(folder, device="cpu", sealed=False)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_tensor_is_named(tiny_copy: Path) -> None:
    """With the files that it isn't in."""
    rewrite(tiny_copy / VAE_FILE, lambda tensors: tensors.pop("post_quant_conv.bias"))
    refused(tiny_copy, "post_quant_conv.bias", "diffusion_pytorch_model.safetensors")


def test_an_unexpected_tensor_is_named(tiny_copy: Path) -> None:
    """It may be a whole other model."""
    rewrite(tiny_copy / VAE_FILE, lambda tensors: tensors.update(stranger=torch.zeros(2)))
    refused(tiny_copy, VAE_FILE, "stranger")


def test_a_wrong_shape_is_named(tiny_copy: Path) -> None:
    """Both shapes, the file's and the config's."""
    rewrite(tiny_copy / VAE_FILE, lambda tensors: tensors.update({"post_quant_conv.bias": torch.zeros(7)}))
    refused(tiny_copy, VAE_FILE, "post_quant_conv.bias", "[7]", "[16]")


def test_integers_in_place_of_weights_are_named(tiny_copy: Path) -> None:
    """Quantized files are not what this loads."""
    rewrite(tiny_copy / VAE_FILE, lambda t: t.update({"post_quant_conv.bias": torch.zeros(16, dtype=torch.int8)}))
    refused(tiny_copy, VAE_FILE, "post_quant_conv.bias", "I8")


def test_a_tensor_in_two_files_is_named(tiny_copy: Path) -> None:
    """Which of them is meant cannot be told."""
    first, second = sorted((tiny_copy / "transformer").glob("*.safetensors"))[:2]
    twice = load_file(first)
    rewrite(second, lambda tensors: tensors.update({next(iter(twice)): next(iter(twice.values()))}))
    refused(tiny_copy, first.name, second.name, next(iter(twice)))


def test_a_truncated_file_is_named(tiny_copy: Path) -> None:
    """By the tensor that reaches past its end."""
    path = tiny_copy / VAE_FILE
    os.truncate(path, path.stat().st_size - 10)
    refused(tiny_copy, VAE_FILE, "10 bytes are missing")


@pytest.mark.parametrize("size", [0, 5, 8, 100])
def test_a_stump_of_a_file_is_named(tiny_copy: Path, size: int) -> None:
    """Whether it ends in its length, its header, or before either."""
    os.truncate(tiny_copy / VAE_FILE, size)
    refused(tiny_copy, VAE_FILE)


@pytest.mark.parametrize("offsets", [[0, 10**12], [-32, 0], [32, 0], [0, 31], [0.0, 32.0], "no"])
def test_a_lying_header_is_named(tiny_copy: Path, offsets: Any) -> None:
    """Offsets out of the file, backwards, overlapping, or no numbers."""
    change_header(tiny_copy / VAE_FILE, lambda h: h["post_quant_conv.bias"].update(data_offsets=offsets))
    refused(tiny_copy, VAE_FILE, "post_quant_conv.bias")


def test_overlapping_tensors_are_named(tiny_copy: Path) -> None:
    """Two tensors may not share bytes."""

    def overlap(header: dict[str, Any]) -> None:
        header["quant_conv.bias"] = {**header["quant_conv.bias"], **header["post_quant_conv.bias"], "shape": [16]}

    change_header(tiny_copy / VAE_FILE, overlap)
    refused(tiny_copy, VAE_FILE, "overlaps")


# --- other files that are wrong


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "..", "a/b.safetensors", "", 7, None])
def test_an_index_that_points_outside_its_folder_is_refused(tiny_copy: Path, name: Any) -> None:
    """Nothing outside is opened."""
    path = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    change_json(path, weight_map={**weight_map, "proj_out.bias": name})
    refused(tiny_copy, path.name, "proj_out.bias", repr(name))


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {}}', '{"weight_map": 3}', "\xff", "[" * 100_000])
def test_an_index_that_is_none_is_refused(tiny_copy: Path, text: str) -> None:
    """Malformed, or of another shape."""
    path = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_bytes(text.encode("latin-1"))
    refused(tiny_copy, path.name)


def test_a_missing_shard_is_named(tiny_copy: Path) -> None:
    """The index knows its name."""
    path = sorted((tiny_copy / "transformer").glob("*.safetensors"))[1]
    path.unlink()
    refused(tiny_copy, path.name)


def test_a_pipe_in_place_of_a_file_does_not_hang(tiny_copy: Path) -> None:
    """It is not a regular file."""
    (tiny_copy / VAE_FILE).unlink()
    os.mkfifo(tiny_copy / VAE_FILE)
    refused(tiny_copy, VAE_FILE, "not a regular file")


def test_both_an_index_and_a_single_file_are_refused(tiny_copy: Path) -> None:
    """diffusers and transformers disagree on which comes first."""
    shutil.copy(tiny_copy / VAE_FILE, tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors")
    refused(tiny_copy, "transformer", "both")


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("fault", ["missing", "not json", "nonsense"])
def test_a_bad_config_is_named(tiny_copy: Path, component: str, fault: str) -> None:
    """Missing, malformed, or describing no model."""
    path = tiny_copy / component / "config.json"
    if fault == "missing":
        path.unlink()
    elif fault == "not json":
        path.write_text("{")
    else:
        change_json(path, num_layers="many", dim_mult=None)
    refused(tiny_copy, f"{component}/config.json")


def test_a_bad_tokenizer_is_named(tiny_copy: Path) -> None:
    """Malformed, without a pad token, with one that the embedding lacks, or gone."""
    folder = tiny_copy / "tokenizer"
    change_json(folder / "tokenizer_config.json", eos_token="<stop>")
    refused(tiny_copy, "tokenizer.json", "special token")
    change_json(folder / "tokenizer_config.json", pad_token=None)
    refused(tiny_copy, "tokenizer_config.json", "pad_token")
    change_json(folder / "tokenizer_config.json", pad_token="<pad>", eos_token="</s>")
    (folder / "tokenizer.json").write_text("{}")
    refused(tiny_copy, "tokenizer.json")
    (folder / "tokenizer.json").unlink()
    refused(tiny_copy, "tokenizer.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "WanImageToVideoPipeline"},
        {"_class_name": None},
        {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
        {"boundary_ratio": 0.875},
        {"expand_timesteps": True},
        {"text_encoder": ["transformers", "T5EncoderModel"]},
        {"vae": ["diffusers", "AutoencoderKL"]},
        {"scheduler": ["diffusers", "WanPipeline"]},
        {"scheduler": ["os", "system"]},
        {"scheduler": None},
        {"scheduler": "UniPCMultistepScheduler"},
        {"scheduler": ["diffusers"]},
    ],
)
def test_another_kind_of_pipeline_is_not_supported(tiny_copy: Path, changes: dict[str, Any]) -> None:
    """Image-to-video, Wan 2.2, or other parts."""
    change_json(tiny_copy / "model_index.json", **changes)
    with pytest.raises(NotSupportedError):
        load(tiny_copy, device="cpu", sealed=False)


@pytest.mark.parametrize("changes", [{"beta_schedule": "steep"}, {"trained_betas": "?"}, {"num_train_timesteps": []}])
def test_a_scheduler_config_that_describes_none_is_damage(tiny_copy: Path, changes: dict[str, Any]) -> None:
    """Whatever diffusers makes of it."""
    change_json(tiny_copy / "scheduler/scheduler_config.json", **changes)
    with pytest.raises(DamagedError, match=r"scheduler_config\.json does not describe a UniPCMultistepScheduler"):
        load(tiny_copy, device="cpu", sealed=False)


# --- the published sizes


@attrs.frozen
class Published:
    component: str
    config: dict[str, Any]
    tensors: int
    parameters: int


@pytest.mark.parametrize(
    "model",
    [
        Published("transformer", {**TRANSFORMER, "attention_head_dim": 128, "ffn_dim": 8960, "num_attention_heads": 12,
                                  "num_layers": 30, "text_dim": 4096}, 825, 1_418_996_800),
        Published("transformer", {**TRANSFORMER, "attention_head_dim": 128, "ffn_dim": 13824, "num_attention_heads": 40,
                                  "num_layers": 40, "text_dim": 4096}, 1095, 14_288_491_584),
        Published("text_encoder", {**TEXT_ENCODER, "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64,
                                   "num_layers": 24, "vocab_size": 256384}, 242, 5_680_910_336),
        Published("vae", {**VAE, "base_dim": 96}, 194, 126_892_531),
    ],
    ids=["1.3B", "14B", "umt5-xxl", "vae"],
)  # fmt: skip
def test_the_published_models_need_the_tensors_that_their_repos_hold(model: Published) -> None:
    """Counted without memory for a single weight."""
    wanted = expected_tensors(model.component, model.config)
    assert len(wanted) == model.tensors
    assert sum(torch.Size(shape).numel() for shape in wanted.values()) == model.parameters
