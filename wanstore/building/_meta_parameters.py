"""Modules whose parameters take no memory, made by one thread, without touching what others see.

The usual ways (`accelerate.init_empty_weights`, a default dtype, patched initial values) change the whole process: a
thread that makes a tensor or a layer meanwhile gets one in float16, or without memory. A torch function mode belongs to
its thread alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self

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
        self._threads = 0

    def __enter__(self) -> Self:
        # Tables are small. Several threads wait for one another at each step, while a transfer keeps a core busy.
        self._threads = torch.get_num_threads()
        _set_threads(1)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _set_threads(self._threads)

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


def _set_threads(count: int) -> None:
    """How many threads the operations of this one use from now on, if OpenMP makes them. torch's own way is for all."""
    if library := _openmp():
        library.omp_set_num_threads(count)


@cache
def _openmp() -> ctypes.PyDLL | None:
    library = ctypes.PyDLL(torch._C.__file__)  # it finds what the library was linked with
    return library if hasattr(library, "omp_set_num_threads") else None


def forget_values(model: torch.nn.Module) -> None:
    """Move the parameters that are real to the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
