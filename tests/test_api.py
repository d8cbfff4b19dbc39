"""setup and load, end to end: a real Hub protocol, real files, real kills."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import wanstore
from wanstore._files import hash_file
from wanstore.api import _setup
from wanstore.building import _tokenizer
from wanstore.conversion._plan import make_plan
from wanstore.conversion.fp16 import Fp16Converter
from wanstore.errors import (
    AlreadyExistsError,
    ConversionRefusedError,
    DamagedError,
    DiskFullError,
    NotFoundError,
    NotSupportedError,
    SourceError,
    WanstoreError,
)
from wanstore.interfaces import ConversionPlan, Converted, Listing, Quiet, Source
from wanstore.manifest import ConversionRecord, FileEntry
from wanstore.stores.local import LocalStore


class Messages(Quiet):
    """A progress that keeps the messages, and the names of tasks."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tasks: list[str] = []

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.tasks.append(task)

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_a_folder_is_set_up_whole_and_says_where_it_came_from(tiny_fp32: Path, store: LocalStore) -> None:
    """Every stored floating tensor is F16, the manifest names source and versions, and the hashes hold."""
    manifest = wanstore.setup(str(tiny_fp32), store, name="w")
    assert store.list().pipelines == (manifest,) and store.verify("w").ok
    assert manifest.source.kind == "folder" and {"torch", "python", "wanstore"} <= manifest.versions.keys()
    for path in (store.root / "w").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_a_second_setup_of_the_same_recipe_is_a_no_op_that_says_so(tiny_fp32: Path, store: LocalStore) -> None:
    """Nothing is written again, and a message says why."""
    first = wanstore.setup(str(tiny_fp32), store, name="w")
    before = {path: path.stat().st_mtime_ns for path in (store.root / "w").rglob("*")}
    messages = Messages()
    assert wanstore.setup(str(tiny_fp32), store, name="w", progress=messages) == first
    assert "nothing to do" in messages.said[0]
    assert {path: path.stat().st_mtime_ns for path in (store.root / "w").rglob("*")} == before


def test_notes_are_kept_for_whoever_loads_it(tiny_fp32: Path, store: LocalStore) -> None:
    """They are in the manifest, and other notes alone make no other recipe."""
    wanstore.setup(str(tiny_fp32), store, name="w", notes={"attention": "native"})
    again = wanstore.setup(str(tiny_fp32), store, name="w", notes={"attention": "xformers"})
    assert again.notes == store.manifest("w").notes == {"attention": "native"}
    attention = wanstore.load("w", store=store, device="cpu").load_report.attention
    assert attention and attention.asked == "native"


def test_another_recipe_under_the_same_name_needs_replace(tiny_fp32: Path, tiny_bf16: Path, store: LocalStore) -> None:
    """Another source, or the same with another policy, is another recipe."""
    wanstore.setup(str(tiny_fp32), store, name="w")
    with pytest.raises(AlreadyExistsError, match="--replace"):
        wanstore.setup(str(tiny_bf16), store, name="w")
    with pytest.raises(AlreadyExistsError):
        wanstore.setup(str(tiny_fp32), store, name="w", converter=Fp16Converter(overflow="clamp"))
    replaced = wanstore.setup(str(tiny_bf16), store, name="w", replace=True)
    assert store.list().pipelines == (replaced,) and store.verify("w").ok


def test_a_damaged_manifest_is_healed_by_replace(tiny_fp32: Path, store: LocalStore) -> None:
    """Without --replace it is an error that says so."""
    wanstore.setup(str(tiny_fp32), store, name="w")
    (store.root / "w/wanstore.json").write_text("{")
    with pytest.raises(DamagedError, match="--replace"):
        wanstore.setup(str(tiny_fp32), store, name="w")
    wanstore.setup(str(tiny_fp32), store, name="w", replace=True)
    assert store.verify("w").ok


def test_replace_makes_a_damaged_pipeline_again_and_leaves_a_whole_one(tiny_fp32: Path, store: LocalStore) -> None:
    """By the same recipe: every file is verified first, and what was found is said."""
    first = wanstore.setup(str(tiny_fp32), store, name="w")
    messages = Messages()
    assert wanstore.setup(str(tiny_fp32), store, name="w", replace=True, progress=messages) == first
    assert "and whole: nothing to do" in messages.said[-1]
    with (store.root / "w/vae/config.json").open("a") as file:
        file.write(" ")
    wanstore.setup(str(tiny_fp32), store, name="w", replace=True, progress=messages)
    assert "w is damaged" in messages.said[-1] and store.verify("w").ok


def change_tensor(folder: Path, component: str, change: str) -> str:
    """Damage one component's first file; returns the tensor's name."""
    path = min((folder / component).glob("*.safetensors"))
    tensors = load_file(path)
    name = min(tensors)
    if change == "drop":
        del tensors[name]
    elif change == "reshape":
        tensors[name] = torch.zeros(3, 3, 3)
    elif change == "add":
        name = "a.tensor.too.many"
        tensors[name] = torch.zeros(3)
    elif change == "nan":
        tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)
    return name


@pytest.mark.parametrize(
    ("change", "error"),
    [("drop", SourceError), ("reshape", SourceError), ("add", SourceError), ("nan", ConversionRefusedError)],
)
def test_a_source_that_does_not_fit_its_models_leaves_the_store_as_it_was(
    tiny_fp32: Path, store: LocalStore, tmp_path: Path, change: str, error: type[WanstoreError]
) -> None:
    """The tensor is named, and no work stays behind."""
    wanstore.setup(str(tiny_fp32), store, name="kept")
    bad = copy_of(tiny_fp32, tmp_path / "bad")
    name = change_tensor(bad, "vae", change)
    with pytest.raises(error, match=name.replace(".", r"\.")):
        wanstore.setup(str(bad), store, name="w")
    assert [manifest.name for manifest in store.list().pipelines] == ["kept"]
    assert not list((store.root / ".wanstore/stages").iterdir())


def test_a_config_that_describes_no_model_is_named(tiny_fp32: Path, store: LocalStore, tmp_path: Path) -> None:
    """Before any weights are read."""
    bad = copy_of(tiny_fp32, tmp_path / "bad")
    (bad / "vae/config.json").write_text('{"dim_mult": "many"}')
    with pytest.raises(SourceError, match=r"vae/config\.json"):
        wanstore.setup(str(bad), store)
    assert store.list() == Listing()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("scheduler/scheduler_config.json", '{"_class_name": "UniPC'),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "steep"}'),
        ("tokenizer/tokenizer.json", "{}"),
        ("tokenizer/tokenizer_config.json", '{"pad_token": "<nowhere>"}'),
        ("tokenizer/tokenizer_config.json", "[]"),
    ],
)
def test_a_scheduler_or_tokenizer_that_cannot_be_built_is_named(
    tiny_fp32: Path, store: LocalStore, tmp_path: Path, path: str, text: str
) -> None:
    """Before any weights are read; a load would find out too late."""
    bad = copy_of(tiny_fp32, tmp_path / "bad")
    (bad / path).write_text(text)
    messages = Messages()
    with pytest.raises(SourceError, match=f"^{path.rpartition('/')[0]}/tokenizer|^{path}") as caught:
        wanstore.setup(str(bad), store, progress=messages)
    assert str(tmp_path) not in str(caught.value) and "convert" not in messages.tasks
    assert store.list() == Listing() and not list((store.root / ".wanstore/stages").iterdir())


@pytest.mark.parametrize("change", [{"vae": ["elsewhere", "AutoencoderKLWan"]}, {"boundary_ratio": 0.9}])
def test_what_load_would_refuse_is_not_set_up(
    tiny_fp32: Path, store: LocalStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Another library's parts, or Wan 2.2."""
    bad = copy_of(tiny_fp32, tmp_path / "bad")
    index = json.loads((bad / "model_index.json").read_text())
    (bad / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(NotSupportedError, match="wanstore loads Wan 2") as caught:
        wanstore.setup(str(bad), store)
    assert str(tmp_path) not in str(caught.value) and store.list() == Listing()


def test_too_little_room_is_said_before_any_work(
    tiny_fp32: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error gives both figures."""
    monkeypatch.setattr(_setup, "free_bytes", lambda _: 1000)
    with pytest.raises(DiskFullError, match=r"0\.0 GB are free"):
        wanstore.setup(str(tiny_fp32), store, name="w")
    assert store.list() == Listing()


class Widening(Fp16Converter):
    """A third party's converter that keeps what it was given: "fp16" in name alone."""

    def plan(self, source: Source) -> ConversionPlan:
        return make_plan(source, {})

    def convert(self, plan: ConversionPlan, target: Path, **options: Any) -> Converted:
        files = []
        for shard in plan.shards:
            (target / shard.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.source.fetch(shard.source_path, target, Quiet()), target / shard.path)
        for path in [*plan.copies, *plan.source_indexes]:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.source.fetch(path, target, Quiet()), target / path)
        self.spoil(target)
        for file in sorted(path for path in target.rglob("*") if path.is_file()):
            path = file.relative_to(target).as_posix()
            files.append(FileEntry(path, file.stat().st_size, hash_file(file)))
        return Converted(ConversionRecord("widening", 1, {}, {}), tuple(files))

    def spoil(self, target: Path) -> None:
        """What else it does wrong."""


class Emptying(Widening):
    """It writes configs of its own, which hold nothing."""

    def spoil(self, target: Path) -> None:
        (target / "vae/config.json").write_text("{}")


class Losing(Widening):
    """It forgets the tokenizer."""

    def spoil(self, target: Path) -> None:
        shutil.rmtree(target / "tokenizer")


class Garbling(Widening):
    """It writes another tokenizer, which is none."""

    def spoil(self, target: Path) -> None:
        (target / "tokenizer/tokenizer.json").write_text("{}")


class Straying(Widening):
    """It leaves weights that no component opens, but others may."""

    def spoil(self, target: Path) -> None:
        save_file({"w": torch.zeros(1)}, target / "vae/diffusion_pytorch_model.fp32.safetensors")


class Quantizing(Widening):
    """Its config says so: wanstore leaves that out, and diffusers itself would act on it."""

    def spoil(self, target: Path) -> None:
        path = target / "transformer/config.json"
        config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
        path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("converter", "dtype", "reason"),
    [
        (Straying, "fp16", r"vae/diffusion_pytorch_model\.fp32\.safetensors belongs to no component"),
        (Quantizing, "fp16", r"transformer/config\.json describes quantized weights"),
        (Widening, "fp32", r"tensor \S+ is F32, not F16"),
        (Widening, "bf16", r"tensor \S+ is BF16, not F16"),
        (Emptying, "fp16", "vae"),
        (Losing, "fp16", "tokenizer"),
        (Garbling, "fp16", "tokenizer"),
    ],
)
def test_nothing_is_sealed_that_cannot_be_loaded_or_is_not_float16(
    converter: type[Widening], dtype: str, reason: str, store: LocalStore, request: pytest.FixtureRequest
) -> None:
    """Whoever wrote the converter."""
    source = request.getfixturevalue(f"tiny_{dtype}")
    with pytest.raises(DamagedError, match=rf"The converter 'fp16' wrote what cannot be loaded: .*{reason}"):
        wanstore.setup(str(source), store, name="w", converter=converter())
    assert store.list() == Listing() and not list((store.root / ".wanstore/stages").iterdir())


def test_a_tokenizer_that_is_stored_as_it_was_is_built_once(
    tiny_fp32: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the conversion: that takes a second, and the same bytes give the same."""
    built: list[Path] = []
    monkeypatch.setattr(_tokenizer, "load_tokenizer", built.append)
    wanstore.setup(str(tiny_fp32), store, name="w")
    assert len(built) == 1


def test_a_converter_that_keeps_float16_as_it_is_can_be_sealed(tiny_fp16: Path, store: LocalStore) -> None:
    """Its own way of writing is its own affair."""
    wanstore.setup(str(tiny_fp16), store, name="w", converter=Widening())
    assert wanstore.load("w", store=store, device="cpu").dtype == torch.float16


def test_whole_numbers_where_the_model_wants_floats_are_refused(
    tiny_fp32: Path, tmp_path: Path, store: LocalStore
) -> None:
    """Such as a quantized weight, whose name and shape are right."""
    source = copy_of(tiny_fp32, tmp_path / "source")
    path = source / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].to(torch.int32)}, path)
    with pytest.raises(SourceError, match=rf"{re.escape(name)} is I32, where the model wants a floating-point"):
        wanstore.setup(str(source), store, name="w")


def test_a_source_that_says_it_is_quantized_is_refused(tiny_fp32: Path, tmp_path: Path, store: LocalStore) -> None:
    """Before any work."""
    source = copy_of(tiny_fp32, tmp_path / "source")
    config = json.loads((source / "transformer/config.json").read_text())
    (source / "transformer/config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    with pytest.raises(SourceError, match="describes quantized weights"):
        wanstore.setup(str(source), store, name="w")


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("transformer/config.json", "eps", "x"),
        ("text_encoder/config.json", "num_layers", 100_000),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("tokenizer/tokenizer_config.json", "model_max_length", "x"),
    ],
)
def test_a_config_out_of_bounds_is_the_sources_fault_at_setup(
    tiny_fp32: Path, tmp_path: Path, store: LocalStore, path: str, key: str, value: Any
) -> None:
    """Named by file and key, before any tensor is converted."""
    source = copy_of(tiny_fp32, tmp_path / "source")
    (source / path).write_text(json.dumps({**json.loads((source / path).read_text()), key: value}))
    with pytest.raises(SourceError, match=rf"^{re.escape(path)}.*\b{key} is {value!r}, not "):
        wanstore.setup(str(source), store, name="w")
    assert store.list() == Listing()


SHARED, SECOND = "shared.weight", "encoder.embed_tokens.weight"


def with_embedding(folder: Path, change: str) -> None:
    """Store the text encoder's embedding under its second name too, or instead, or as something else."""
    index = folder / "text_encoder/model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    path = folder / "text_encoder" / weight_map[SHARED]
    tensors = load_file(path)
    copy = tensors[SHARED].clone()
    if change == "differs":
        copy[-1, -1] += 1
    if change == "instead":
        del tensors[SHARED], weight_map[SHARED]
    save_file(tensors, path, metadata={"format": "pt"})
    save_file({SECOND: copy}, folder / "text_encoder/more.safetensors", metadata={"format": "pt"})
    weight_map[SECOND] = "more.safetensors"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("change", ["beside", "instead"])
def test_an_embedding_under_its_second_name_is_stored_once(
    tiny_fp32: Path, tmp_path: Path, store: LocalStore, change: str
) -> None:
    """The model has one tensor of two names; which of them a source uses makes no difference."""
    source = copy_of(tiny_fp32, tmp_path / "source")
    with_embedding(source, change)
    wanstore.setup(str(source), store, name="w")
    wanstore.setup(str(tiny_fp32), store, name="plain")
    ours, theirs = (wanstore.load(name, store=store, device="cpu").text_encoder for name in ("w", "plain"))
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    held = [name for file in (store.root / "w/text_encoder").glob("*.safetensors") for name in load_file(file)]
    assert held.count(SHARED) == 1 and SECOND not in held


def test_an_embedding_that_is_stored_twice_and_differs_is_refused(
    tiny_fp32: Path, tmp_path: Path, store: LocalStore
) -> None:
    """Nobody knows which is meant."""
    source = copy_of(tiny_fp32, tmp_path / "source")
    with_embedding(source, "differs")
    with pytest.raises(SourceError, match=rf"{SECOND} is not the same as {SHARED}"):
        wanstore.setup(str(source), store, name="w")
    assert store.list() == Listing()


@pytest.mark.parametrize("source", ["no-such-word", "./no/such/folder", "https://huggingface.co/a/b"])
def test_a_source_that_is_nothing_is_not_found(store: LocalStore, source: str) -> None:
    """Neither a folder nor a repo."""
    with pytest.raises(NotFoundError):
        wanstore.setup(source, store)


def test_an_unknown_scheme_is_refused(tiny_fp32: Path) -> None:
    """Before anything else is done; the schemes that there are come with it."""
    with pytest.raises(NotSupportedError, match=r"ftp://.*file://, gs://, modal://"):
        wanstore.setup(str(tiny_fp32), "ftp://bucket")


def test_load_takes_a_name_in_a_store_or_one_address(tiny_fp32: Path, store: LocalStore) -> None:
    """Both give the same pipeline; a wrong name says how to see the right ones."""
    wanstore.setup(str(tiny_fp32), store, name="w")
    by_name = wanstore.load("w", store=store, device="cpu")
    by_address = wanstore.load(str(store.root / "w"), device="cpu", verify=True)
    assert torch.equal(by_name.text_encoder.shared.weight, by_address.text_encoder.shared.weight)
    with pytest.raises(NotFoundError, match="wanstore list"):
        wanstore.load("nothing", store=store)


def test_the_environment_names_the_store_of_a_name_alone(
    tiny_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For setup, open_store and load, sealed or not. An address that says where to look is taken at its word."""
    monkeypatch.setenv("WANSTORE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    manifest = wanstore.setup(str(tiny_fp32), name="w")
    assert wanstore.open_store().manifest("w") == manifest
    for sealed in (True, False):
        pipe = wanstore.load("w", device="cpu", weights="deferred", sealed=sealed)
        assert pipe.load_report.folder == str(tmp_path / "store/w")
    with pytest.raises(NotFoundError, match="no pipeline 'w' in"):
        wanstore.load("./w")


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_store_the_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """One that is empty counts as not set. The current folder is still a store for what is in it."""
    monkeypatch.delenv("WANSTORE_STORE", raising=False) if value is None else monkeypatch.setenv(
        "WANSTORE_STORE", value
    )
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = [wanstore.open_store, lambda: wanstore.setup("."), lambda: wanstore.load("w")]
    for call in calls:
        with pytest.raises(WanstoreError, match="set WANSTORE_STORE"):
            call()
    (tmp_path / "w").mkdir()
    with pytest.raises(NotFoundError, match="no pipeline 'w' in"):
        wanstore.load("w")


@pytest.mark.parametrize("empty", ["", "file://"])
def test_an_empty_store_is_refused(tmp_path: Path, empty: str) -> None:
    """An unset variable of a script would otherwise mean the current folder."""
    calls: list[Any] = [wanstore.open_store, lambda s: wanstore.load("w", store=s), lambda s: wanstore.setup(".", s)]
    for call in calls:
        with pytest.raises(NotSupportedError, match="store's address is empty"):
            call(empty)


@pytest.mark.parametrize("store", [None, "/anywhere"])
def test_a_repo_of_the_hub_is_not_loaded_but_set_up(store: str | None) -> None:
    """The error has the command."""
    with pytest.raises(NotFoundError, match=r"wanstore setup Wan-AI/Wan2\.1-T2V-1.3B-Diffusers --store STORE"):
        wanstore.load("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", store=store)


def test_load_takes_an_unsealed_folder_by_the_same_addresses(tiny_fp16: Path, tmp_path: Path) -> None:
    """And says how, where a manifest is missing."""
    root = copy_of(tiny_fp16, tmp_path / "w").parent
    for address, store in ((root / "w", None), ((root / "w").as_uri(), None), ("w", root), ("w", LocalStore(root))):
        assert wanstore.load(address, store=store, device="cpu", sealed=False).device.type == "cpu"
    with pytest.raises(NotFoundError, match=r"w is not sealed: it has no wanstore\.json.*sealed=False"):
        wanstore.load(root / "w", device="cpu")
    with pytest.raises(NotSupportedError, match="Only a folder on this machine"):
        wanstore.load("modal://volume/w", device="cpu", sealed=False)


def test_load_may_widen_a_component(tiny_fp32: Path, store: LocalStore) -> None:
    """What is stored stays float16."""
    wanstore.setup(str(tiny_fp32), store, name="w")
    pipe = wanstore.load("w", store=store, device="cpu", dtype={"vae": "float32"})
    assert (pipe.vae.dtype, pipe.transformer.dtype) == (torch.float32, torch.float16)


def test_importing_load_imports_neither_torch_nor_diffusers() -> None:
    """`from wanstore import load` costs milliseconds."""
    code = "import sys; from wanstore import load; print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_remote_store_tells_of_its_own_transfers(tiny_sealed: Path, s3: Any) -> None:
    """A first load downloads, a setup or copy uploads: gigabytes, in silence otherwise. Then the store is as before."""
    heard = Heard()
    bucket = wanstore.open_store(f"s3://{s3.bucket}/wan")
    before = bucket.progress
    wanstore.copy("tiny", tiny_sealed.parent, bucket, progress=heard)
    wanstore.load("tiny", store=bucket, device="cpu", progress=heard)
    size = bucket.manifest("tiny").size_bytes
    assert heard.done["copy tiny"] == heard.done["download tiny"] == size and bucket.progress is before


class Heard:
    """A `Progress` that adds up."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        self.done[task] = 0

    def advance(self, task: str, amount: int) -> None:
        self.done[task] += amount

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None: ...
