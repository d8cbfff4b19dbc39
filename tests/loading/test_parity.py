"""What `load` builds is what `WanPipeline.from_pretrained` builds in float16, and with one component in float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from tokenizers import Tokenizer

from wanstore.loading._load import load_folder as load

MODELS = ("text_encoder", "transformer", "vae")
PROMPTS = [
    "a cat walks on the grass",
    "two  spaces   and more",
    "a line\nbreak\tand a tab",
    "a 🐈 in the snow ❄️",
    "漢字 and ẞ, nothing that was trained on",
    " leading and trailing ",
    "<extra_id_0> inside",
    "",
]


def from_pretrained(folder: Path, wide: str = "") -> Any:
    """The pipeline that diffusers itself loads; the component `wide` computes in float32."""
    dtype = {wide: torch.float32, "default": torch.float16} if wide else torch.float16
    return WanPipeline.from_pretrained(str(folder), dtype=dtype)


reference = cache(from_pretrained)


@cache
def loaded(folder: Path, wide: str = "") -> Any:
    return load(folder, device="cpu", sealed=False, dtype={wide: "float32"} if wide else None)


@pytest.fixture(scope="session")
def tiny_mixed(tiny_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What diffusers writes after a float16 load: float16 with float32 between, one file a model."""
    folder = tmp_path_factory.mktemp("mixed") / "tiny"
    WanPipeline.from_pretrained(str(tiny_fp32), dtype=torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_unsharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for each model, with tensors of odd sizes between even ones."""
    from wanstore.testing.tiny_wan import make_tiny_wan

    return make_tiny_wan(tmp_path_factory.mktemp("one") / "tiny", dtype="float16", shard_bytes=1 << 30, seed=3)


@pytest.fixture(params=["tiny_fp32", "tiny_bf16", "tiny_fp16", "tiny_mixed", "tiny_unsharded"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(params=["", *MODELS])
def wide(request: pytest.FixtureRequest) -> str:
    """The component that computes in float32, if one does."""
    name: str = request.param
    return name


def pairs(folder: Path, wide: str) -> Iterator[tuple[Any, Any]]:
    """Each model as loaded, beside the reference's."""
    for name in MODELS:
        yield getattr(loaded(folder, wide), name), getattr(reference(folder, wide), name)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an object that can be compared; of the others, that they are there."""
    simple = (str, int, float, bool, type(None), set, tuple, list, torch.dtype)
    return {name: value if isinstance(value, simple) else type(value) for name, value in values.items()}


def test_state_dicts_are_equal_bit_for_bit(folder: Path, wide: str) -> None:
    """Names and their order, dtypes, strides and every bit."""
    for ours, theirs in pairs(folder, wide):
        held, wanted = ours.state_dict(), theirs.state_dict()
        assert list(held) == list(wanted)
        for name, tensor in wanted.items():
            assert (held[name].dtype, held[name].stride()) == (tensor.dtype, tensor.stride()), name
            assert bits(held[name]) == bits(tensor), name


def test_buffers_that_no_file_holds_are_computed(folder: Path, wide: str) -> None:
    """The RoPE tables above all: non-persistent, float32."""
    for ours, theirs in pairs(folder, wide):
        held, wanted = dict(ours.named_buffers()), dict(theirs.named_buffers())
        assert list(held) == list(wanted)
        for name, buffer in wanted.items():
            assert held[name].dtype == buffer.dtype
            assert bits(held[name]) == bits(buffer)
    assert loaded(folder, wide).transformer.rope.freqs_cos.dtype == torch.float32


def test_modules_and_parameters_have_the_same_attributes(folder: Path, wide: str) -> None:
    """Down to training flags, requires_grad and what transformers notes on modules."""
    for ours, theirs in pairs(folder, wide):
        for (name, module), (other_name, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
            assert (name, type(module)) == (other_name, type(other))
            assert plain(vars(module)) == plain(vars(other)), name
        for (name, ours_p), (_, theirs_p) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert ours_p.requires_grad == theirs_p.requires_grad, name
            assert type(ours_p) is type(theirs_p)


def test_configs_are_equal(folder: Path, wide: str) -> None:
    """Of the models, the scheduler and the pipeline; but the tokenizer is of another class, on purpose."""
    ours, theirs = loaded(folder, wide), reference(folder, wide)
    assert ours.text_encoder.config.to_dict() == theirs.text_encoder.config.to_dict()
    assert ours.text_encoder.config._attn_implementation == theirs.text_encoder.config._attn_implementation
    assert ours.text_encoder.config._name_or_path == theirs.text_encoder.config._name_or_path
    for part in ("transformer", "vae", "scheduler"):
        assert dict(getattr(ours, part).config) == dict(getattr(theirs, part).config)
    held, wanted = dict(ours.config), dict(theirs.config)
    assert (held.pop("tokenizer")[0], wanted.pop("tokenizer")[0]) == ("transformers", "transformers")
    assert held == wanted


def test_the_text_encoders_embedding_is_tied(folder: Path, wide: str) -> None:
    """One tensor under two names, as the reference has it."""
    for pipe in (loaded(folder, wide), reference(folder, wide)):
        assert pipe.text_encoder.encoder.embed_tokens.weight is pipe.text_encoder.shared.weight


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_tokenizer_encodes_as_its_file_says(tiny_fp16: Path, prompt: str) -> None:
    """Ids of `tokenizers.Tokenizer.from_file`, called as the pipeline calls it."""
    stored = Tokenizer.from_file(str(tiny_fp16 / "tokenizer" / "tokenizer.json")).encode(prompt).ids
    encoded = loaded(tiny_fp16).tokenizer(
        [prompt], padding="max_length", max_length=64, truncation=True, add_special_tokens=True,
        return_attention_mask=True, return_tensors="pt",
    )  # fmt: skip
    assert encoded.input_ids[0].tolist() == stored + [0] * (64 - len(stored))
    assert encoded.attention_mask[0].sum() == len(stored)


def test_the_tokenizer_cuts_long_prompts_and_keeps_the_end(tiny_fp16: Path) -> None:
    """A truncated prompt still ends in </s>."""
    ids = loaded(tiny_fp16).tokenizer("a cat " * 100, max_length=16, truncation=True).input_ids
    assert len(ids) == 16
    assert ids[-1] == 1


def test_the_tokenizer_knows_its_special_tokens(tiny_fp16: Path) -> None:
    """Pad, eos, unk and the longest length are those of tokenizer_config.json."""
    tokenizer = loaded(tiny_fp16).tokenizer
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 3)
    assert tokenizer.model_max_length == 1000000000000000019884624838656
    assert "<extra_id_7>" in tokenizer.all_special_tokens


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from a second one, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("frames", "wide"), [(5, ""), (9, ""), (5, "vae"), (5, "transformer"), (5, "text_encoder")])
def test_generated_clips_are_equal(tiny_fp16: Path, frames: int, wide: str) -> None:
    """Given the same tokenizer, the same seed gives the same clip to the last bit."""
    clips = []
    ours, theirs = loaded(tiny_fp16, wide), from_pretrained(tiny_fp16, wide)
    theirs.register_modules(tokenizer=ours.tokenizer)
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
        clips.append(
            pipe(
                "a cat  walks on\nthe grass", negative_prompt="blurred", height=64, width=64, num_frames=frames,
                num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt",
            ).frames
        )  # fmt: skip
    assert clips[0].shape == (1, frames, 3, 64, 64)
    assert torch.isfinite(clips[0]).all()
    assert torch.equal(*clips)


def test_a_loaded_pipeline_can_be_saved_and_opened_by_diffusers(tiny_fp16: Path, tmp_path: Path) -> None:
    """Tensors that share a buffer do not confuse `save_pretrained`."""
    load(tiny_fp16, device="cpu", sealed=False).save_pretrained(tmp_path)
    again = WanPipeline.from_pretrained(str(tmp_path), dtype=torch.float16)
    for name in MODELS:
        held, wanted = getattr(again, name).state_dict(), getattr(loaded(tiny_fp16), name).state_dict()
        assert all(bits(held[key]) == bits(tensor) for key, tensor in wanted.items())
