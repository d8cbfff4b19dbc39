"""The tiny pipeline is a real one, only small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from wanstore._files import files_below, hash_file
from wanstore.testing.tiny_wan import make_tiny_wan


def hashes(folder: Path) -> dict[str, str]:
    return {path: hash_file(folder / path) for path in files_below(folder)}


def stored_dtypes(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  it is no dict
    return found


def test_the_same_seed_gives_the_same_bytes_in_another_process(tiny_fp32: Path, tmp_path: Path) -> None:
    """Weights and tokenizer alike, whatever the hash seed."""
    code = "import sys; from wanstore.testing.tiny_wan import make_tiny_wan; make_tiny_wan(sys.argv[1])"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, env=environment)
    assert hashes(tmp_path / "again") == hashes(tiny_fp32)


def test_another_seed_gives_other_weights(tiny_fp32: Path, tmp_path: Path) -> None:
    """And the same configs."""
    first, other = hashes(tiny_fp32), hashes(make_tiny_wan(tmp_path / "tiny", seed=1))
    changed = {path for path in first if first[path] != other[path]}
    assert changed
    assert all(path.endswith(".safetensors") for path in changed)


def test_the_process_own_random_numbers_are_left_alone(tmp_path: Path) -> None:
    """Making one draws nothing from torch's global generator."""
    before = torch.random.get_rng_state()
    make_tiny_wan(tmp_path / "tiny")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("fixture", "dtype"), [("tiny_fp32", "F32"), ("tiny_bf16", "BF16"), ("tiny_fp16", "F16")])
def test_every_tensor_has_the_asked_for_dtype(request: pytest.FixtureRequest, fixture: str, dtype: str) -> None:
    """Also those that a float16 load would keep in float32."""
    assert stored_dtypes(request.getfixturevalue(fixture)) == {dtype}


@pytest.mark.parametrize(("component", "stem"), [("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_large_models_are_sharded_under_an_index(tiny_fp32: Path, component: str, stem: str) -> None:
    """The index names each shard, and lies beside them."""
    index = json.loads((tiny_fp32 / component / f"{stem}.safetensors.index.json").read_text())
    shards = {path.name for path in (tiny_fp32 / component).glob("*.safetensors")}
    assert len(shards) > 1
    assert set(index["weight_map"].values()) == shards


def test_the_text_encoder_stores_its_embedding_once_and_denies_the_tie(tiny_fp32: Path) -> None:
    """As the published repo does."""
    index = json.loads((tiny_fp32 / "text_encoder" / "model.safetensors.index.json").read_text())
    assert "shared.weight" in index["weight_map"]
    assert "encoder.embed_tokens.weight" not in index["weight_map"]
    config = json.loads((tiny_fp32 / "text_encoder" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_the_tokenizer_fits_the_embedding_and_umt5s_special_tokens(tiny_fp32: Path) -> None:
    """Pad 0, end 1, start 2, unknown 3, extra ids last."""
    tokenizer = Tokenizer.from_file(str(tiny_fp32 / "tokenizer" / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<s>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.token_to_id("<extra_id_0>") == tokenizer.get_vocab_size() - 1
    config = json.loads((tiny_fp32 / "text_encoder" / "config.json").read_text())
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    assert 3 in tokenizer.encode("漢").ids
