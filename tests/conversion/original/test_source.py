"""A source in the original layout looks like a diffusers folder; what is wrong with it is said in one line."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import wanstore
from tests.conversion.original.conftest import Sources
from tests.conversion.original.layout import T5_FILE, TRANSFORMER_FILE, VAE_FILE, write_original
from wanstore.api._setup import open_source
from wanstore.conversion.folder import FolderSource
from wanstore.conversion.original import OriginalSource, is_original
from wanstore.errors import ConversionRefusedError, NotSupportedError, SourceError, WanstoreError
from wanstore.interfaces import Listing, Quiet
from wanstore.stores.local import LocalStore
from wanstore.testing.converters import read_component

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5\n"
CONFIGS = ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json",
           "text_encoder/config.json")  # fmt: skip


def test_the_layout_is_known_by_its_files(sources_fp32: Sources, tmp_path: Path) -> None:
    """A folder with model_index.json is a diffusers folder, whatever else is in it."""
    assert isinstance(open_source(str(sources_fp32.original)), OriginalSource)
    assert isinstance(open_source(str(sources_fp32.diffusers)), FolderSource)
    assert not is_original({"model_index.json", VAE_FILE, T5_FILE}) and not is_original({"x.pth"})


def test_it_has_the_files_of_a_diffusers_folder(sources_fp32: Sources, tmp_path: Path) -> None:
    """Configs in the very bytes; every file in the size that is given for it; nothing of the source is changed."""
    source = open_source(str(sources_fp32.original))
    assert source.files.keys() == open_source(str(sources_fp32.diffusers)).files.keys()
    for path in CONFIGS:
        fetched = source.fetch(path, tmp_path, Quiet())
        content = (sources_fp32.diffusers / path).read_bytes()
        assert fetched.read_bytes() == source.head(path, source.files[path]) == content
        assert fetched.is_relative_to(tmp_path)
        source.release(path, fetched)
        assert not fetched.exists()
    weights = source.fetch("vae/diffusion_pytorch_model.safetensors", tmp_path, Quiet())
    source.release("vae/diffusion_pytorch_model.safetensors", weights)
    assert (
        weights == sources_fp32.original / VAE_FILE
        and weights.stat().st_size == source.files["vae/diffusion_pytorch_model.safetensors"]
    )


def test_both_layouts_give_the_same_pipeline(sources_fp32: Sources, store: LocalStore) -> None:
    """The same files in every bit, configs, tokenizer and conversion record included."""
    a = wanstore.setup(str(sources_fp32.diffusers), store, name="a")
    b = wanstore.setup(str(sources_fp32.original), store, name="b")
    assert a.files == b.files and a.conversion == b.conversion and store.verify("b").ok
    pipe = wanstore.load("b", store=store, device="cpu")
    assert pipe.load_report is not None


def test_a_text_encoder_in_bfloat16_is_stored_as_torch_rounds_it(
    sources_fp32: Sources, sources_bf16: Sources, original: Path, store: LocalStore
) -> None:
    """As published: it alone is bfloat16. All else is the float32 source's."""
    shutil.copyfile(sources_bf16.original / T5_FILE, original / T5_FILE)
    wanstore.setup(str(original), store, name="w")
    stored = store.local_path("w")
    for component, source in (("text_encoder", sources_bf16), ("transformer", sources_fp32), ("vae", sources_fp32)):
        published = read_component(source.diffusers / component)
        kept = read_component(stored / component)
        assert kept.keys() == published.keys()
        assert all(torch.equal(kept[name], tensor.half()) for name, tensor in published.items())


def test_a_vae_whose_tensors_lie_in_one_storage_is_the_same(
    sources_fp32: Sources, original: Path, store: LocalStore
) -> None:
    """One after the other, without a byte between them."""
    state = torch.load(original / VAE_FILE, weights_only=True)
    flat, sizes = torch.cat([tensor.flatten() for tensor in state.values()]), [t.numel() for t in state.values()]
    parts = zip(state.items(), flat.split(sizes), strict=True)
    torch.save({name: part.view(tensor.shape) for (name, tensor), part in parts}, original / VAE_FILE)
    one = wanstore.setup(str(original), store, name="one")
    assert one.files == wanstore.setup(str(sources_fp32.diffusers), store, name="several").files


def test_a_transformer_in_several_files_is_read_by_its_index(sources_fp32: Sources, store: LocalStore) -> None:
    """As the 14B is published. The stored files are those of the source, and have an index."""
    original = write_original(sources_fp32.diffusers, store.root.with_name("sharded"), transformer_files=3)
    manifest = wanstore.setup(str(original), store, name="w")
    paths = {entry.path for entry in manifest.files}
    assert "transformer/diffusion_pytorch_model-00003-of-00003.safetensors" in paths
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in paths
    published = read_component(sources_fp32.diffusers / "transformer")
    stored = read_component(store.local_path("w") / "transformer")
    assert stored.keys() == published.keys()
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in published.items())


# --- what is refused


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return edit


def edit_state(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = dict(torch.load(folder / file, weights_only=True))
        change(state)
        torch.save(state, folder / file)

    return edit


def edit_transformer(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / TRANSFORMER_FILE)
        change(tensors)
        save_file(tensors, folder / TRANSFORMER_FILE)

    return edit


def wrong_index(folder: Path) -> None:
    index = {"weight_map": {"head.modulation": TRANSFORMER_FILE, "unheard.of": TRANSFORMER_FILE}}
    (folder / f"{TRANSFORMER_FILE}.index.json").write_text(json.dumps(index))


def hide_a_call(folder: Path) -> None:
    """A pickle that would make the folder `made` beside the source, in an archive that is whole."""
    torch.save({"x": torch.zeros(1)}, folder / VAE_FILE)
    with zipfile.ZipFile(folder / VAE_FILE) as archive:
        (info,) = (info for info in archive.infolist() if info.filename.endswith("data.pkl"))
        size = info.file_size
    made = str(folder / "made").encode()
    call = b"\x80\x02cos\nmkdir\nX" + struct.pack("<I", len(made)) + made + b"\x85R."
    content = (folder / VAE_FILE).read_bytes()
    assert len(call) <= size, "the folder's path is too long"
    start = content.index(b"\x80\x02")
    content = content[:start] + call.ljust(size, b".") + content[start + size :]
    (folder / VAE_FILE).write_bytes(content.replace(struct.pack("<I", info.CRC), crc_of(call.ljust(size, b"."))))


def crc_of(content: bytes) -> bytes:
    import zlib

    return struct.pack("<I", zlib.crc32(content))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "no text encoder": (lambda f: (f / T5_FILE).unlink(), f"{T5_FILE} is missing from original"),
    "no transformer": (lambda f: (f / TRANSFORMER_FILE).unlink(), f"{TRANSFORMER_FILE} is missing from original"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "google"), "tokenizer/tokenizer.json is missing"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "image to video": (edit_config(model_type="i2v"), "of type 'i2v', not text-to-video"),
    "no heads": (edit_config(num_heads=...), "config.json has no num_heads that can be one"),
    "heads in words": (edit_config(num_heads="four"), "config.json has no num_heads that can be one"),
    "zero heads": (edit_config(num_heads=0), "config.json has no num_heads that can be one"),
    "no number for eps": (edit_config(eps=float("nan")), "config.json has no eps that can be one"),
    "an endless eps": (edit_config(eps=float("inf")), "config.json has no eps that can be one"),
    "a type of many words": (edit_config(model_type=["t2v\n" * 1000]), "of type .* not text-to-video"),
    "more layers": (edit_config(num_layers=3), "transformer: tensor blocks.2.* is missing"),
    "endless layers": (edit_config(num_layers=10**8), "num_layers is 100000000, not between"),
    "another width": (edit_config(ffn_dim=128), "the config asks for"),
    "a tensor too many": (
        edit_state(VAE_FILE, lambda s: s.update(x=torch.zeros(1))), f"{VAE_FILE}: tensor 'x' is none of a Wan 2.1 vae"),
    "a tensor too few": (edit_state(VAE_FILE, lambda s: s.pop("conv1.bias")), "vae: tensor quant_conv.bias is missing"),
    "a tensor that configs are made of": (
        edit_state(T5_FILE, lambda s: s.pop("token_embedding.weight")),
        "text_encoder: tensor shared.weight is missing"),
    "one of another shape": (edit_state(VAE_FILE, lambda s: s.update({"conv1.bias": torch.zeros(5)})), "asks for"),
    "one of integers": (
        edit_state(VAE_FILE, lambda s: s.update({"conv1.bias": torch.zeros(32).int()})),
        f"{VAE_FILE} cannot be read as weights: its pickle asks for 'torch.IntStorage'"),
    "one that is none": (
        edit_state(T5_FILE, lambda s: s.update(epoch=3)),
        f"{T5_FILE} cannot be read as weights: its value 'epoch' is not a tensor"),
    "one twice": (
        edit_state(VAE_FILE, lambda s: s.update({"conv1.bias": s["decoder.conv1.bias"]})), "shares its bytes with"),
    "a call in a pickle": (hide_a_call, f"{VAE_FILE} cannot be read as weights: its pickle asks for 'os.mkdir'"),
    "half a text encoder": (
        lambda f: (f / T5_FILE).write_bytes((f / T5_FILE).read_bytes()[:200_000]), f"{T5_FILE} cannot .* truncated"),
    "an empty file": (lambda f: (f / T5_FILE).write_bytes(b""), f"{T5_FILE} cannot be read"),
    "a pointer": (lambda f: (f / VAE_FILE).write_text(POINTER), f"{VAE_FILE} is a Git LFS pointer"),
    "a transformer of new names": (
        edit_transformer(lambda t: t.update(scale_shift_table=t.pop("head.modulation"))),
        f"{TRANSFORMER_FILE}: tensor 'scale_shift_table' is none of a Wan 2.1 transformer"),
    "half a transformer": (
        lambda f: (f / TRANSFORMER_FILE).write_bytes((f / TRANSFORMER_FILE).read_bytes()[:200_000]),
        f"{TRANSFORMER_FILE} cannot be read as weights: it is truncated"),
    "an index of another model": (wrong_index, "tensor 'unheard.of' is none of a Wan 2.1 transformer"),
    "an index without a map": (
        lambda f: (f / f"{TRANSFORMER_FILE}.index.json").write_text("{}"), "index.json has no weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_source_is_refused_in_one_clear_line(original: Path, store: LocalStore, case: str) -> None:
    """Before anything is written, and nothing that a file asks for is done."""
    damage, message = REFUSED[case]
    damage(original)
    before = sorted(original.rglob("*"))
    for attempt in (wanstore.plan_setup, wanstore.setup):
        with pytest.raises((SourceError, NotSupportedError), match=message) as caught:
            attempt(str(original), store)
        assert "\n" not in str(caught.value)
    assert store.list() == Listing() and not list((store.root / ".wanstore/stages").glob("*"))
    assert sorted(original.rglob("*")) == before


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "NaN or Inf"), (1e6, "Values beyond 65504")])
@pytest.mark.parametrize(
    ("file", "name", "new"),
    [(VAE_FILE, "conv1.bias", "quant_conv.bias"), (T5_FILE, "norm.weight", "encoder.final_layer_norm.weight")],
)
def test_values_that_float16_cannot_hold_are_refused(
    original: Path, store: LocalStore, file: str, name: str, new: str, value: float, message: str
) -> None:
    """By the names that they would be stored by."""
    edit_state(file, lambda state: state.update({name: torch.full_like(state[name], value)}))(original)
    with pytest.raises(ConversionRefusedError, match=f"{message}.*{new}"):
        wanstore.setup(str(original), store)
    assert store.list() == Listing()


def test_a_file_that_is_not_what_its_ends_say_is_refused_when_it_is_there(original: Path, store: LocalStore) -> None:
    """The plan has seen the directory; the records themselves lie in between."""
    content = bytearray((original / T5_FILE).read_bytes())
    with zipfile.ZipFile(original / T5_FILE) as archive:
        middle = next(info for info in archive.infolist() if info.filename.endswith("/data/7"))
    content[middle.header_offset + 28] ^= 0xFF
    (original / T5_FILE).write_bytes(content)
    wanstore.plan_setup(str(original), store)
    with pytest.raises(
        WanstoreError, match=f"{T5_FILE} cannot be read as weights: its record .* is not where"
    ) as caught:
        wanstore.setup(str(original), store)
    assert "\n" not in str(caught.value) and store.list() == Listing()
