"""The float16 converter: values, records, refusals, layout, resuming."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wanstore.conversion.folder import FolderSource
from wanstore.conversion.fp16 import Fp16Converter
from wanstore.errors import ConversionRefusedError, SourceError
from wanstore.interfaces import Progress, Quiet
from wanstore.manifest import ConversionRecord
from wanstore.testing import ConverterTests
from wanstore.testing.converters import read_component, write_pipeline


class TestFp16Converter(ConverterTests):
    """Everything that any converter must do."""

    @pytest.fixture
    def converter(self) -> Fp16Converter:
        return Fp16Converter()


def convert(
    folder: Path, weights: dict[str, list[dict[str, torch.Tensor]]], converter: Fp16Converter | None = None
) -> tuple[Path, ConversionRecord]:
    """Write a source, convert it, and give the target with its record."""
    converter = converter or Fp16Converter()
    source = FolderSource(write_pipeline(folder / "source", weights))
    return folder / "target", converter.convert(converter.plan(source), folder / "target").record


def record_of(target: Path, component: str, name: str) -> dict[str, float]:
    tensors = json.loads((target / "conversion.json").read_text())["tensors"][component]
    found: dict[str, float] = next(tensor for tensor in tensors if tensor["name"] == name)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_dtype_becomes_what_torch_casts_it_to(tmp_path: Path, dtype: torch.dtype) -> None:
    """Bit for bit `tensor.to(torch.float16)`, for tensors smaller and larger than a block."""
    tensors = {"large": torch.randn(5_000_003).to(dtype), "small": torch.randn(7, 3).to(dtype)}
    target, _ = convert(tmp_path, {"transformer": [tensors]})
    stored = read_component(target / "transformer")
    for name, tensor in tensors.items():
        assert torch.equal(stored[name].view(torch.int16), tensor.to(torch.float16).view(torch.int16))


def test_integers_scalars_and_empty_tensors_pass_untouched(tmp_path: Path) -> None:
    """Only floating tensors are cast; shapes of rank 0 and of no elements survive."""
    tensors = {
        "ids": torch.arange(700_001), "flags": torch.tensor([True, False, True]), "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4), "byte": torch.tensor([7], dtype=torch.uint8),
    }  # fmt: skip
    target, _ = convert(tmp_path, {"vae": [tensors]})
    stored = read_component(target / "vae")
    assert all(torch.equal(stored[name], tensors[name].half() if tensors[name].is_floating_point() else tensors[name])
               for name in tensors)  # fmt: skip
    assert stored["ids"].dtype == torch.int64 and stored["scalar"].dtype == torch.float16


def test_the_record_counts_what_the_cast_did(tmp_path: Path) -> None:
    """Largest magnitude, values that became zero, subnormals and errors, against plain torch expressions."""
    values = torch.cat([torch.randn(200_000), torch.randn(100_000) * 1e-6, torch.randn(50_000) * 1e-9, torch.zeros(7)])
    target, record = convert(tmp_path, {"transformer": [{"w": values}]})
    half = values.half()
    error = (half.double() - values.double()).abs()
    found = record_of(target, "transformer", "w")
    assert found["max_abs"] == values.abs().max().item()
    assert found["flushed_to_zero"] == int(((half == 0) & (values != 0)).sum()) > 0
    assert found["subnormals"] == int(((half != 0) & (half.abs() < 2**-14)).sum()) > 0
    assert found["max_error"] == pytest.approx(error.max().item())
    assert found["rms_error"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-3)
    summed = record.components["transformer"]
    assert (summed.tensors, summed.parameters, summed.source_dtypes) == (1, len(values), {"F32": 1})
    assert summed.relative_rms_error == pytest.approx(found["rms_error"] / found["rms"])


@pytest.mark.parametrize("value", [65505.0, 65520.0, -1e30])
def test_a_value_beyond_65504_refuses_the_conversion_by_name(tmp_path: Path, value: float) -> None:
    """By default nothing is clamped silently."""
    with pytest.raises(ConversionRefusedError, match=r"blocks\.0\.bad"):
        convert(tmp_path, {"transformer": [{"blocks.0.bad": torch.tensor([1.0, value]), "good": torch.ones(3)}]})


def test_the_largest_float16_is_no_overflow(tmp_path: Path) -> None:
    """65504 itself is stored as it is."""
    target, record = convert(tmp_path, {"vae": [{"w": torch.tensor([65504.0, -65504.0])}]})
    assert read_component(target / "vae")["w"].tolist() == [65504.0, -65504.0]
    assert record.components["vae"].overflows == 0


def test_clamping_stores_the_largest_and_records_how_many(tmp_path: Path) -> None:
    """The policy option keeps the sign and counts each value."""
    weights = {"vae": [{"w": torch.tensor([1e6, -70000.0, 2.0])}]}
    target, record = convert(tmp_path, weights, Fp16Converter(overflow="clamp"))
    assert read_component(target / "vae")["w"].tolist() == [65504.0, -65504.0, 2.0]
    assert record.components["vae"].overflows == 2
    assert record.options == {"overflow": "clamp"}


@pytest.mark.parametrize("overflow", ["refuse", "clamp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_refused_whatever_the_policy(
    tmp_path: Path, overflow: str, dtype: torch.dtype, value: float
) -> None:
    """Both tensors are named, though they lie in different components."""
    bad = torch.tensor([0.0, value, 1.0], dtype=dtype)
    with pytest.raises(ConversionRefusedError, match=r"first.*second"):
        convert(
            tmp_path,
            {"transformer": [{"first": bad}], "vae": [{"second": bad}]},
            Fp16Converter(overflow=overflow),  # type: ignore[arg-type]
        )


def test_files_are_laid_out_for_fast_loading(tmp_path: Path) -> None:
    """Data starts at a page, tensors at multiples of 256 bytes, odd-sized ones come last."""
    tensors = {"odd": torch.randn(3), "even": torch.randn(256), "odder": torch.randn(5), "more": torch.randn(128, 2)}
    target, _ = convert(tmp_path, {"transformer": [tensors]})
    raw = (target / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    starts = {name: entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    assert (8 + length) % 4096 == 0
    assert [starts["even"] % 256, starts["more"] % 256] == [0, 0]
    assert max(starts["even"], starts["more"]) < min(starts["odd"], starts["odder"])


def test_a_large_shard_is_split_and_the_index_names_every_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output files stay below the limit; the index is what diffusers reads."""
    import wanstore.conversion._plan as plan_module

    monkeypatch.setattr(plan_module.make_plan, "__defaults__", (4000,))
    tensors = {f"t{number}": torch.randn(512) for number in range(9)}
    target, _ = convert(tmp_path, {"transformer": [tensors]})
    index = json.loads((target / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted((target / "transformer").glob("*.safetensors"))
    assert len(files) == 3 and index["metadata"]["total_size"] == 9 * 1024
    for name, tensor in tensors.items():
        stored = load_file(target / "transformer" / index["weight_map"][name])[name]
        assert torch.equal(stored, tensor.half())


class StopAfter(Quiet):
    """A progress that interrupts the run after so many bytes of conversion."""

    def __init__(self, size: int) -> None:
        self.left = size

    def advance(self, task: str, amount: int) -> None:
        if task == "convert":
            self.left -= amount
            if self.left < 0:
                raise KeyboardInterrupt


class Listening(Quiet):
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.totals: dict[str, int] = {}

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.totals[task] = total

    def message(self, text: str) -> None:
        self.messages.append(text)


def run(source: FolderSource, folder: Path, progress: Progress) -> ConversionRecord:
    converter = Fp16Converter()
    plan = converter.plan(source)
    return converter.convert(plan, folder / "target", scratch=folder / "scratch", progress=progress).record


def shards(count: int, elements: int) -> dict[str, list[dict[str, torch.Tensor]]]:
    return {"transformer": [{f"t{number}": torch.randn(elements)} for number in range(count)]}


def test_an_interrupted_conversion_goes_on_after_the_last_whole_shard(tmp_path: Path) -> None:
    """Whole shards are hashed and kept, the half-written one is written anew; the result is the same."""
    source = FolderSource(write_pipeline(tmp_path / "source", shards(4, 1_000_000)))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, StopAfter(10_000_000))
    listening = Listening()
    resumed = run(source, tmp_path, listening)
    assert listening.totals["convert"] < 16_000_000
    assert "already converted" in listening.messages[0]
    assert resumed == run(source, tmp_path / "afresh", Quiet())


def test_a_kept_shard_that_was_altered_is_converted_anew(tmp_path: Path) -> None:
    """The journal is not believed without hashing."""
    source = FolderSource(write_pipeline(tmp_path / "source", shards(3, 1000)))
    run(source, tmp_path, Quiet())
    shard = next((tmp_path / "target/transformer").glob("*-00002-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run(source, tmp_path, Quiet())
    assert shard.read_bytes() == whole


def test_a_torn_journal_line_costs_one_shard_not_the_run(tmp_path: Path) -> None:
    """A run killed while it noted a shard leaves half a line."""
    source = FolderSource(write_pipeline(tmp_path / "source", shards(3, 1000)))
    record = run(source, tmp_path, Quiet())
    journal = tmp_path / "scratch/journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert run(source, tmp_path, Quiet()) == record


def test_a_source_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    """A file cut short after planning is named with the tensor."""
    source = FolderSource(write_pipeline(tmp_path / "source", shards(1, 100_000)))
    converter = Fp16Converter()
    plan = converter.plan(source)
    path = tmp_path / "source/transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="ends inside t0"):
        converter.convert(plan, tmp_path / "target")


def test_the_largest_file_is_converted_first(tiny_fp32: Path, tmp_path: Path) -> None:
    """Whatever the order of the plan: the last one to arrive leaves little to do."""

    class Noting(FolderSource):
        def release(self, path: str, fetched: Path) -> None:
            if path.endswith(".safetensors"):
                released.append(self.files[path])

    released: list[int] = []
    converter = Fp16Converter()
    converter.convert(converter.plan(Noting(tiny_fp32)), tmp_path)
    assert len(set(released)) > 2 and released == sorted(released, reverse=True)


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    """Its import takes a second, in which a source can be asked for already."""
    write_pipeline(tmp_path, shards(1, 1000))
    code = (
        "import sys; from pathlib import Path; from wanstore.conversion.fp16 import Fp16Converter;"
        "from wanstore.conversion.folder import FolderSource;"
        "Fp16Converter().plan(FolderSource(Path(sys.argv[1]))); print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert output.stdout == "False\n"


def test_no_thread_outlives_a_conversion(tmp_path: Path) -> None:
    """Hashing and writing threads end with the call."""
    before = threading.active_count()
    convert(tmp_path, shards(2, 1000))
    assert threading.active_count() == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' proc")
def test_memory_stays_flat_whatever_the_size(tmp_path: Path) -> None:
    """Converting 100 MB raises the peak of a fresh process by less than 50 MB over converting 4 MB."""
    peaks = []
    for name, elements in (("small", 500_000), ("large", 12_500_000)):
        write_pipeline(tmp_path / name, shards(2, elements))
        code = (
            "import sys; from pathlib import Path; from wanstore.conversion.fp16 import Fp16Converter;"
            "from wanstore.conversion.folder import FolderSource; c = Fp16Converter();"
            "c.convert(c.plan(FolderSource(Path(sys.argv[1]))), Path(sys.argv[2]));"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        command = [sys.executable, "-c", code, str(tmp_path / name), str(tmp_path / f"{name}-out")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 50_000
