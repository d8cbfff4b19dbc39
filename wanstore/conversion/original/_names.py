"""The original name of every module that holds tensors, and diffusers' or transformers' name of the same module.

`#` stands for a block's number. What comes after a module, such as `.weight`, is the same in both, and so are shapes.
These are facts of the models' code: `wan/modules` of Wan-Video/Wan2.1, diffusers' `WanTransformer3DModel` and
`AutoencoderKLWan`, and transformers' `UMT5EncoderModel`.
"""

from __future__ import annotations

import re

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    **{f"blocks.#.self_attn.{ours}": f"blocks.#.attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"blocks.#.cross_attn.{ours}": f"blocks.#.attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "blocks.#.norm3": "blocks.#.norm2",  # diffusers numbers the norms in the order that they are used in
    "blocks.#.ffn.0": "blocks.#.ffn.net.0.proj",
    "blocks.#.ffn.2": "blocks.#.ffn.net.2",
    "blocks.#.modulation": "blocks.#.scale_shift_table",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}

_TEXT_ENCODER = {
    "token_embedding": "shared",
    **{f"blocks.#.attn.{part}": f"encoder.block.#.layer.0.SelfAttention.{part}" for part in "qkvo"},
    "blocks.#.pos_embedding.embedding": "encoder.block.#.layer.0.SelfAttention.relative_attention_bias",
    "blocks.#.norm1": "encoder.block.#.layer.0.layer_norm",
    "blocks.#.ffn.gate.0": "encoder.block.#.layer.1.DenseReluDense.wi_0",
    "blocks.#.ffn.fc1": "encoder.block.#.layer.1.DenseReluDense.wi_1",
    "blocks.#.ffn.fc2": "encoder.block.#.layer.1.DenseReluDense.wo",
    "blocks.#.norm2": "encoder.block.#.layer.1.layer_norm",
    "norm": "encoder.final_layer_norm",
}

_RESIDUAL = {
    "residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
_RESAMPLE = ("resample.1", "time_conv")
_UP_BLOCKS, _UP_RESNETS = 4, 3
"""The decoder's. The original has their parts in one row: three residual blocks and, but for the last, an upsampler."""
_VAE = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{half}.{ours}": f"{half}.{theirs}"
        for half in ("encoder", "decoder")
        for ours, theirs in {
            "conv1": "conv_in",
            **{f"middle.0.{part}": f"mid_block.resnets.0.{name}" for part, name in _RESIDUAL.items()},
            **{f"middle.1.{part}": f"mid_block.attentions.0.{part}" for part in ("norm", "to_qkv", "proj")},
            **{f"middle.2.{part}": f"mid_block.resnets.1.{name}" for part, name in _RESIDUAL.items()},
            "head.0": "norm_out",
            "head.2": "conv_out",
        }.items()
    },
    **{f"encoder.downsamples.#.{part}": f"encoder.down_blocks.#.{name}" for part, name in _RESIDUAL.items()},
    **{f"encoder.downsamples.#.{part}": f"encoder.down_blocks.#.{part}" for part in _RESAMPLE},
    **{
        f"decoder.upsamples.{block * (_UP_RESNETS + 1) + resnet}.{part}": (
            f"decoder.up_blocks.{block}.resnets.{resnet}.{name}"
        )
        for block in range(_UP_BLOCKS)
        for resnet in range(_UP_RESNETS)
        for part, name in _RESIDUAL.items()
    },
    **{
        f"decoder.upsamples.{block * (_UP_RESNETS + 1) + _UP_RESNETS}.{part}": (
            f"decoder.up_blocks.{block}.upsamplers.0.{part}"
        )
        for block in range(_UP_BLOCKS - 1)
        for part in _RESAMPLE
    },
}

MODULES = {"transformer": _TRANSFORMER, "text_encoder": _TEXT_ENCODER, "vae": _VAE}
"""Original name to new name, by component."""
_LEAF = re.compile(r"\.(weight|bias|gamma)$")
_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,3})(?=\.)")


def new_name(component: str, original: str) -> str | None:
    """The name of the tensor in a diffusers folder; None if the component has no tensor of that original name."""
    modules = MODULES[component]
    leaf = match[0] if (match := _LEAF.search(original)) else ""
    module = original.removesuffix(leaf)
    if module in modules and "#" not in module:
        return modules[module] + leaf
    # Only a block's number varies, and it comes first: those after it are places in a Sequential.
    number = _NUMBER.search(module)
    new = modules.get(_NUMBER.sub("#", module, count=1)) if number else None
    return new.replace("#", number[0]) + leaf if number and new else None
