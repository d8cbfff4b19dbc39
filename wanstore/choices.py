"""The names that `load` and `bench` choose from, as types: a checker refuses any other.

`AttentionBackend` lists the backends of diffusers 0.42 (`diffusers.models.attention_dispatch.AttentionBackendName`).
"""

from __future__ import annotations

from typing import Literal

ComponentName = Literal["transformer", "text_encoder", "vae"]
"""A component of a pipeline that has weights."""

DtypeName = Literal["float16", "float32"]
"""What a component computes in."""

WeightsMode = Literal["resident", "deferred"]
"""Whether `load` reads the weights, or leaves them to `activate`."""

MemoryMode = Literal["auto", "resident", "offload"]
"""How much of a GPU a pipeline may take: what fits, all of it, or all but the text encoder while that does not work."""

CompileMode = Literal["off", "cached", "on"]
"""Whether a transformer's blocks run compiled: never, for the sizes that the store has functions for, or for all."""

PresetName = Literal["480p/3s", "480p/5s", "720p/5s", "720p/10s"]
"""One of the presets of production, as `presets.toml` has them."""

AttentionBackend = Literal[
    "flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub", "_flash_3", "_flash_varlen_3",
    "_flash_3_hub", "_flash_3_varlen_hub", "aiter_fa2_hub", "flex", "native", "_native_cudnn", "_native_efficient",
    "_native_flash", "_native_math", "_native_npu", "_native_xla", "sage", "sage_hub", "sage_blackwell_hub",
    "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90", "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton", "xformers",
]  # fmt: skip
"""An attention implementation; which of them work depends on the GPU and on the packages installed."""
