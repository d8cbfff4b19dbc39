"""The attention backend: the one that is asked for if it works on this machine, else the native one, and why."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from wanstore._error_translation import first_line
from wanstore.errors import NotSupportedError
from wanstore.lean_imports import allow_gpu, quiet_libraries

NATIVE = "native"


def check_known(backend: str) -> None:
    """Raise `NotSupportedError` for a name that diffusers has no backend of. Touches no device."""
    names = [name.value for name in AttentionBackendName]
    if backend not in names:
        raise NotSupportedError(f"diffusers has no attention backend {backend!r}", f"Choose from {', '.join(names)}")


def use_backend(pipe: Any, backend: str, device: torch.device) -> str:
    """Make the pipeline's transformer use `backend` once it has worked on `device`, or else the native one.

    Returns why the native backend is used instead; "" where `backend` is.
    """
    if device.type != "cuda":
        return "" if backend == NATIVE else f"it needs a GPU, the pipeline is on {device}"
    with quiet_libraries():  # diffusers says each time that its backends are an experiment
        allow_gpu()
        try:
            pipe.transformer.set_attention_backend(backend)
            _try(backend, device, pipe.transformer.dtype)
        except Exception as error:  # noqa: BLE001  backends fail in many ways: not installed, built for another GPU
            # diffusers keeps the name for the whole process: it has to be set back, not only left alone.
            pipe.transformer.set_attention_backend(NATIVE)
            return first_line(error)
    return ""


def _try(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """One small attention with the transformer's head size and dtype, so that a backend fails here and now."""
    query = torch.randn(1, 64, 2, 128, dtype=dtype, device=device)
    result = dispatch_attention_fn(query, query, query, backend=AttentionBackendName(backend))
    if not torch.isfinite(result).all():
        raise NotSupportedError(f"{backend} gives values that are not finite")
