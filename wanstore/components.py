"""The components of a Wan 2.1 pipeline that hold weights: what builds each, and how its files are named."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import attrs

from wanstore.errors import NotSupportedError


@attrs.frozen
class Component:
    """`library` and `model_class` as model_index.json names them; weight files begin with `weights_stem`.

    `float32_modules` is the class's own list (`_keep_in_fp32_modules`) of what stays in float32 when it is
    loaded as float16. It stands here too because weights start moving before the class is imported.
    `tied` is a tensor that the model has under two names: the one that files hold it by, and the other.
    """

    library: str
    model_class: str
    weights_stem: str
    float32_modules: tuple[str, ...] = ()
    tied: tuple[str, str] | None = None

    def keeps_float32(self, tensor: str) -> bool:
        """Whether `from_pretrained(dtype=torch.float16)` keeps the tensor in float32.

        The list names whole segments of a path: `norm1` is not `norm10`.
        """
        return not set(self.float32_modules).isdisjoint(tensor.split("."))

    @property
    def single_file(self) -> str:
        """The weight file of a component that is not cut into shards."""
        return f"{self.weights_stem}.safetensors"

    def shard_file(self, number: int, count: int) -> str:
        """The weight file `number`, from 1, of `count`, as diffusers and transformers name them."""
        return self.single_file if count == 1 else f"{self.weights_stem}-{number:05d}-of-{count:05d}.safetensors"

    @property
    def index_file(self) -> str:
        """The index of one that is."""
        return f"{self.single_file}.index.json"


COMPONENTS = {
    "transformer": Component(
        "diffusers", "WanTransformer3DModel", "diffusion_pytorch_model",
        ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"),
    ),
    "text_encoder": Component("transformers", "UMT5EncoderModel", "model", ("wo",),
                              ("shared.weight", "encoder.embed_tokens.weight")),
    "vae": Component("diffusers", "AutoencoderKLWan", "diffusion_pytorch_model"),
}  # fmt: skip
"""By their names in a pipeline folder; each may be of this one class."""


def check_index(index: Mapping[str, Any], where: str) -> None:
    """Raise `NotSupportedError` unless the `index`, a model_index.json, is a Wan 2.1 text-to-video pipeline's."""
    kind = index.get("_class_name")
    if kind != "WanPipeline":
        raise NotSupportedError(
            f"{where} describes {reprlib.repr(kind)}, not a Wan 2.1 WanPipeline",
            "Use the text-to-video pipeline, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        )
    two_stage = index.get("transformer_2", [None, None]) != [None, None] or index.get("boundary_ratio") is not None
    if two_stage or index.get("expand_timesteps"):
        raise NotSupportedError(f"{where} describes Wan 2.2, not a Wan 2.1 WanPipeline", "wanstore loads Wan 2.1 only")
    for component, parts in COMPONENTS.items():
        classes, found = [parts.library, parts.model_class], index.get(component)
        if found != classes:
            raise NotSupportedError(
                f"{where} says that {component} is {reprlib.repr(found)}, not {classes}",
                "wanstore loads Wan 2.1 text-to-video only",
            )
