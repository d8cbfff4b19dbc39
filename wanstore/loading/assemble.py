"""A `WanPipeline` put together from a folder's parts, equal in every bit and attribute to `from_pretrained`'s.

`from_pretrained(dtype=torch.float16)` is the reference: tensors under modules that a model class keeps in
float32 (`_keep_in_fp32_modules`) are widened, all others are float16.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.models.modeling_utils import no_init_weights
from diffusers.schedulers import SchedulerMixin
from transformers import UMT5Config, UMT5EncoderModel

from wanstore.errors import DamagedError, NotSupportedError
from wanstore.loading.check import read_json

_CLASSES: dict[str, Any] = {
    "text_encoder": UMT5EncoderModel,
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
}
_TIED = "encoder.embed_tokens.weight"
"""UMT5's second name for `shared.weight`: files hold it once."""
_BUILDING = threading.Lock()
"""torch's default dtype, which skeletons are built under, belongs to the whole process."""


def expected_tensors(component: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the component's files must hold, given its config.json.

    Raises `DamagedError` when the config describes no such model.
    """
    return wanted_tensors(build_skeleton(component, config, ""))


def wanted_tensors(model: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that files must hold for `model`."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != _TIED}


def build_skeleton(component: str, config: Mapping[str, Any], path: str) -> Any:
    """The component's model with its parameters on the meta device, its buffers real, and nothing in memory.

    `path` is the folder it is said to come from. Raises `DamagedError` when `config` describes no such model.
    """
    try:
        with _BUILDING, _default_dtype(torch.float16):
            return _build_umt5(config, path) if component == "text_encoder" else _build_diffusers(component, config)
    except Exception as error:  # a broken config fails in as many ways as there are lines in a model's __init__
        raise DamagedError(
            f"{component}/config.json describes no {_CLASSES[component].__name__} ({error})",
            "Run setup again with --replace",
        ) from error


def is_wide(component: str, tensor: str) -> bool:
    """Whether `from_pretrained(dtype=torch.float16)` keeps the tensor in float32.

    The classes' lists name whole segments of a path: `norm1` is not `norm10`.
    """
    kept = _CLASSES[component]._keep_in_fp32_modules or ()
    return not set(kept).isdisjoint(tensor.split("."))


def finish_model(component: str, model: Any, tensors: Mapping[str, torch.Tensor], path: str) -> None:
    """Give a skeleton its tensors and what `from_pretrained` leaves on a model."""
    for name, tensor in tensors.items():
        _assign(model, name, tensor)
    if component == "text_encoder":
        _finish_umt5(model)
    else:
        model.register_to_config(_name_or_path=path)
    model.eval()


def load_scheduler(folder: Path) -> Any:
    """The scheduler that model_index.json names, with its config. Raises `NotSupportedError` for an unknown one."""
    library, name = read_json(folder / "model_index.json").get("scheduler", [None, None])
    scheduler_class = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise NotSupportedError(f"{folder / 'model_index.json'} names no scheduler of diffusers: {library}, {name}")
    build: Any = scheduler_class
    return build.from_config(read_json(folder / "scheduler" / "scheduler_config.json"))


def assemble(folder: Path, models: Mapping[str, Any], tokenizer: Any, device: torch.device) -> Any:
    """The pipeline of finished parts on `device`, where the parameters already are: only buffers move."""
    pipe = WanPipeline(tokenizer=tokenizer, scheduler=load_scheduler(folder), **models)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe.to(device)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def _build_umt5(config: Mapping[str, Any], path: str) -> Any:
    umt5 = UMT5Config.from_dict(dict(config))
    umt5.dtype = torch.float16
    umt5._name_or_path = path  # before the model is built, which copies it
    with torch.device("meta"):  # UMT5 has no buffers that this could lose
        return UMT5EncoderModel(umt5)


def _build_diffusers(component: str, config: Mapping[str, Any]) -> Any:
    # Parameters only: the RoPE tables are buffers that no file holds, so they have to be computed.
    with no_init_weights(), init_empty_weights(include_buffers=False):
        return _CLASSES[component].from_config(dict(config))


def _assign(model: Any, name: str, tensor: torch.Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    parameters = model.get_submodule(module)._parameters
    # Into the place of the one that is there, so that the state dict keeps its order.
    parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=parameters[leaf].requires_grad)


def _finish_umt5(model: Any) -> None:
    model.encoder.embed_tokens.weight = model.shared.weight  # untied it would be garbage, not an error
    model._use_kernels, model._weight_conversions = False, []
    for module in model.modules():
        module._is_hf_initialized = True
