"""Modules whose parameters take no memory, made without touching what other threads see.

The usual ways (`accelerate.init_empty_weights`, a default dtype, patched initial values) change the whole process: a
thread that makes a tensor or a layer meanwhile gets one in float16, or without memory. A torch function mode belongs to
its thread alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = (torch.rand, torch.randn)
_FILLED = (torch.ones, torch.zeros, *_DRAWN)
_MADE = (torch.empty, *_FILLED)
_MAX_REAL_ELEMENTS = 1 << 24
"""Ten times what the largest Wan 2.1 has of them, and 64 MiB in float32."""
_INITIAL_VALUES = {
    name for place in (torch.nn.init, torch.Tensor) for name in dir(place) if name.endswith("_") and name[0] != "_"
} - {"requires_grad_"}
"""Every function that writes into a tensor."""


class MetaParameters(TorchFunctionMode):
    """While it is entered, this thread's new parameters are of `dtype` and on the meta device; buffers are real.

    Those that a model computes something of are real, and small, until `forget_values`. Raises `ValueError` if they are
    not small, before they take memory: sizes that are harmless by themselves are multiplied with each other.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._real_elements = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in _MADE and options.get("dtype") is None:
            options["dtype"] = self._dtype
        if func in _FILLED:
            self._real_elements += torch.empty(*args, **{**options, "device": "meta"}).numel()
            if self._real_elements > _MAX_REAL_ELEMENTS:
                raise ValueError(f"its sizes multiply to more than {_MAX_REAL_ELEMENTS} values of scales and tables")
        if func is torch.empty:  # what layers make their weights of; no buffer is, its values are computed
            options["device"] = "meta"
        elif func in _DRAWN:  # nothing is drawn: the caller's random numbers stay as they were
            func = torch.zeros
        elif func.__name__ in _INITIAL_VALUES:
            target = args[0] if args else options["tensor"]
            if target.is_meta:  # computing values for what has no memory would import PyTorch's compiler
                return target
        return func(*args, **options)


def forget_values(model: torch.nn.Module) -> None:
    """Move the parameters that are real to the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
