"""A tiny Wan 2.1 text-to-video pipeline folder: real classes, real layout, random weights, a few MB.

Everything that trips loaders is there as published: sharded files, a text encoder that stores its embedding
once while its config denies the tie, and a Unigram tokenizer with umT5's special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import UMT5Config, UMT5EncoderModel

_CORPUS = (
    "A cat walks on the grass, realistic style, high quality, golden hour.",
    "Two anthropomorphic cats in comfy boxing gear fight intensely on a spotlighted stage.",
    "A dog and a cat baking a cake together in a cozy kitchen with sunlight.",
    "Bright tones, overexposed, static, blurred details, subtitles, worst quality, low quality.",
    "The camera follows the bird upward, capturing its flight and the vastness of the sky.",
)
SPECIAL_TOKENS = ("<pad>", "</s>", "<s>", "<unk>")
_EXTRA_IDS = 20
_DIFFUSERS = "0.33.0.dev0"
"""The version that wrote the published files."""

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "_diffusers_version": _DIFFUSERS,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler", "_diffusers_version": _DIFFUSERS,
    "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True,
    "num_train_timesteps": 1000, "predict_x0": True, "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "solver_order": 2, "solver_p": None,
    "solver_type": "bh2", "steps_offset": 0, "thresholding": False, "timestep_spacing": "linspace",
    "trained_betas": None, "use_beta_sigmas": False, "use_exponential_sigmas": False, "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}  # fmt: skip
TEXT_ENCODER: dict[str, Any] = {
    "_name_or_path": "google/umt5-xxl", "architectures": ["UMT5EncoderModel"], "classifier_dropout": 0.0,
    "d_ff": 128, "d_kv": 16, "d_model": 64, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "umt5",
    "num_decoder_layers": 2, "num_heads": 4, "num_layers": 2, "output_past": True, "pad_token_id": 0,
    "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "scalable_attention": True,
    "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "torch_dtype": "float32",
    "transformers_version": "4.48.0.dev0", "use_cache": True, "vocab_size": 256,
}  # fmt: skip
TRANSFORMER: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel", "_diffusers_version": _DIFFUSERS, "added_kv_proj_dim": None,
    "attention_head_dim": 32, "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 256, "freq_dim": 256,
    "image_dim": None, "in_channels": 16, "num_attention_heads": 4, "num_layers": 2, "out_channels": 16,
    "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 64,
}  # fmt: skip
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLWan", "_diffusers_version": _DIFFUSERS, "attn_scales": [], "base_dim": 8,
    "dim_mult": [1, 2, 4, 4], "dropout": 0.0,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    ],
    "num_res_blocks": 2, "temperal_downsample": [False, True, True], "z_dim": 16,
}  # fmt: skip


def make_tiny_wan(folder: Path, *, dtype: str = "float32", shard_bytes: int = 200_000, seed: int = 0) -> Path:
    """Write the pipeline into `folder`, which must not hold one yet; the same arguments give the same bytes.

    `dtype` (float32, float16, bfloat16) is that of every tensor. Files of the transformer and the text encoder
    hold at most `shard_bytes`, or one tensor that is larger; the VAE is one file, as published. Returns `folder`.
    """
    folder = Path(folder)
    for name, config in (("model_index.json", MODEL_INDEX), ("scheduler/scheduler_config.json", SCHEDULER)):
        _write_json(folder / name, config)
    write_tokenizer(folder / "tokenizer", _vocabulary(), _EXTRA_IDS)
    text_encoder = {**TEXT_ENCODER, "torch_dtype": dtype}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: dict[str, tuple[Any, dict[str, Any], str]] = {
            "text_encoder": (UMT5EncoderModel(UMT5Config.from_dict(text_encoder)), text_encoder, "model"),
            "transformer": (WanTransformer3DModel.from_config(TRANSFORMER), TRANSFORMER, "diffusion_pytorch_model"),
            "vae": (AutoencoderKLWan.from_config(VAE), VAE, "diffusion_pytorch_model"),
        }
    for component, (model, config, stem) in built.items():
        _write_json(folder / component / "config.json", config)
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
        tensors.pop("encoder.embed_tokens.weight", None)  # the second name of shared.weight
        _write_weights(folder / component, stem, tensors, 1 << 40 if component == "vae" else shard_bytes)
    return folder


def _write_weights(folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], shard_bytes: int) -> None:
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=stem + "{suffix}.safetensors", max_shard_size=shard_bytes
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / f"{stem}.safetensors.index.json", index)


def write_tokenizer(folder: Path, vocabulary: list[tuple[str, float]], extra_ids: int) -> None:
    """Write umT5's tokenizer with the Unigram `vocabulary`, whose first pieces are `SPECIAL_TOKENS`."""
    tokenizer = _around(models.Unigram(vocabulary, SPECIAL_TOKENS.index("<unk>")))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    extra = [f"<extra_id_{i}>" for i in range(extra_ids)]
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, *reversed(extra)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in (*SPECIAL_TOKENS, *extra)
        },
        "additional_special_tokens": extra,
        "clean_up_tokenization_spaces": True,
        "extra_ids": extra_ids,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "T5Tokenizer",
        **named,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **named})


def _around(model: models.Unigram) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def _vocabulary() -> list[tuple[str, float]]:
    """A small one, its scores rounded: the trainer sums them in no fixed order, so their last digits vary."""
    tokenizer = _around(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(SPECIAL_TOKENS), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = [(piece, round(score, 4)) for piece, score in vocabulary[len(SPECIAL_TOKENS) :]]
    special = [(piece, score) for piece, score in vocabulary[: len(SPECIAL_TOKENS)]]
    return special + sorted(pieces, key=lambda item: (-item[1], item[0]))


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
