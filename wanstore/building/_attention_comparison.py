"""Which attention backend is fastest on a preset's own shape, found by trying."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from wanstore.lean_imports import allow_gpu, quiet_libraries
from wanstore.presets import Preset

CANDIDATES = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "xformers", "flash")
"""diffusers' names of what may be installed; `native` leaves the choice to torch."""
_ROUNDS = 3


def compare_backends(transformer: Any, device: torch.device, preset: Preset) -> dict[str, float]:
    """Seconds of one self-attention by backend, fastest first; empty on a CPU, which has but one.

    It is of the transformer's dtype, which needs no weights for it. What does not work on this machine is left out. The
    transformer has one of those that were tried set afterwards.
    """
    if device.type != "cuda":
        return {}
    allow_gpu()
    config = transformer.config
    shape = (1, preset.clip.tokens, config.num_attention_heads, config.attention_head_dim)
    query = torch.randn(shape, dtype=transformer.dtype, device=device)
    found = {}
    with quiet_libraries(), torch.inference_mode():
        for backend in CANDIDATES:
            try:
                found[backend] = _seconds(transformer, backend, query)
            except Exception:  # noqa: BLE001, S112  backends fail in many ways: absent, built for another GPU
                continue
    del query
    torch.cuda.empty_cache()
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _seconds(transformer: Any, backend: str, query: torch.Tensor) -> float:
    transformer.set_attention_backend(backend)  # it is this that checks what the backend needs
    name = AttentionBackendName(backend)
    dispatch_attention_fn(query, query, query, backend=name)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(_ROUNDS):
        dispatch_attention_fn(query, query, query, backend=name)
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000 / _ROUNDS
