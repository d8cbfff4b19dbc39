"""The models of a pipeline without weights, and then with theirs, equal in every bit to `from_pretrained`'s.

`from_pretrained(dtype=torch.float16)` is the reference: tensors under modules that a model class keeps in
float32 (`_keep_in_fp32_modules`) are widened, all others are float16. A component may be float32 as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from wanstore.building._config import known_config, reason
from wanstore.building._dtypes import FLOAT16
from wanstore.building._meta_parameters import MetaParameters, forget_values
from wanstore.components import COMPONENTS
from wanstore.errors import DamagedError, NotSupportedError

_CLASSES: dict[str, Any] = {
    "text_encoder": UMT5EncoderModel,
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
}


def expected_tensors(
    component: str, config: Mapping[str, Any], tensors: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the component's files must hold, given its config.json.

    `tensors` is how many they hold: see `build_skeleton`. Raises `DamagedError` when the config describes no such
    model.
    """
    return wanted_tensors(build_skeleton(component, config, "", tensors=tensors))


def wanted_tensors(model: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that files must hold for `model`."""
    seconds = {parts.tied[1] for parts in COMPONENTS.values() if parts.tied}  # files hold a tied tensor once
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in seconds}


def build_skeleton(
    component: str, config: Mapping[str, Any], path: str, dtype: str = FLOAT16, *, tensors: int | None = None
) -> Any:
    """The component's model with its parameters on the meta device, its buffers real, and nothing in memory.

    It has all else that `from_pretrained` leaves on a model. `path` is the folder it is said to come from, `dtype`
    what it computes in. A config of more layers than the component's files hold `tensors` is refused before anything is
    built. Raises `DamagedError` when `config` describes no such model.
    """
    try:
        if component == "text_encoder":
            model = _build_umt5(known_config(config, UMT5Config, tensors), path, getattr(torch, dtype))
        else:
            model_class = _CLASSES[component]
            known = known_config(config, model_class, tensors)
            model = _build_diffusers(model_class, known, path, getattr(torch, dtype))
        forget_values(model)
        return model.eval()
    except Exception as error:  # a broken config fails in as many ways as there are lines in a model's __init__
        raise DamagedError(
            f"{component}/config.json is not a config of {_CLASSES[component].__name__} ({reason(error)})",
            "Run setup again with --replace",
        ) from error


def check_classes() -> None:
    """Raise `NotSupportedError` unless the installed classes keep in float32 what `COMPONENTS` says they do."""
    for component, parts in COMPONENTS.items():
        kept = tuple(_CLASSES[component]._keep_in_fp32_modules or ())
        if set(kept) != set(parts.float32_modules):
            raise NotSupportedError(
                f"The installed {parts.library} keeps other parts of {parts.model_class} in float32: {kept}, "
                f"not {parts.float32_modules}",
                "Install the versions that wanstore is tested with: see its constraints.txt",
            )


def fill_model(component: str, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a skeleton its tensors, by name, and move its buffers to where they are."""
    for name, tensor in tensors.items():
        _assign(model, name, tensor)
    if component == "text_encoder":
        _tie(model)
    move_buffers(model, next(iter(tensors.values())).device)


def move_buffers(model: Any, device: torch.device) -> None:
    """Move what no file holds, the RoPE tables above all."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _build_umt5(config: Mapping[str, Any], path: str, dtype: torch.dtype) -> Any:
    umt5 = UMT5Config.from_dict(dict(config))
    umt5.dtype = dtype
    umt5._name_or_path = path  # before the model is built, which copies it
    with MetaParameters(dtype):
        model = UMT5EncoderModel(umt5)
    _tie(model)
    model._use_kernels, model._weight_conversions = False, []
    for module in model.modules():
        module._is_hf_initialized = True
    return model


def _build_diffusers(model_class: Any, config: Mapping[str, Any], path: str, dtype: torch.dtype) -> Any:
    with MetaParameters(dtype):
        model = model_class.from_config(config)
    model.register_to_config(_name_or_path=path)
    return model


def _assign(model: Any, name: str, tensor: torch.Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    parameters = model.get_submodule(module)._parameters
    # Into the place of the one that is there, so that the state dict keeps its order.
    parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=parameters[leaf].requires_grad)


def _tie(model: Any) -> None:
    model.encoder.embed_tokens.weight = model.shared.weight  # untied it would be garbage, not an error
