"""The components of a Wan 2.1 pipeline that hold weights: what builds each, and how its files are named."""

from __future__ import annotations

import attrs


@attrs.frozen
class Component:
    """`library` and `model_class` as model_index.json names them; weight files begin with `weights_stem`."""

    library: str
    model_class: str
    weights_stem: str

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
    "transformer": Component("diffusers", "WanTransformer3DModel", "diffusion_pytorch_model"),
    "text_encoder": Component("transformers", "UMT5EncoderModel", "model"),
    "vae": Component("diffusers", "AutoencoderKLWan", "diffusion_pytorch_model"),
}
"""By their names in a pipeline folder; each may be of this one class."""
