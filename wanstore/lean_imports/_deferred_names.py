"""What diffusers and transformers import at their top, and a load has no use for.

Each entry was looked at: a function or class that is called, subclassed or looked for by isinstance, or a
registry that is looked things up in; and only in features other than building, moving and running a pipeline.
A release that imports other names gets the real ones, which only costs time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wanstore.lean_imports._proxies import ModuleProxy, NameProxy

IMPORTERS = ("diffusers", "transformers", "torchvision")
"""The packages whose import statements get proxies; transformers imports the last one where it is installed."""

MODULES = ("scipy.stats", "xformers", "xformers.ops")
"""Modules that are imported whole."""

ATTENTION = {
    "xformers": "_CAN_USE_XFORMERS_ATTN",
    "flash_attn": "_CAN_USE_FLASH_ATTN",
    "flash_attn_interface": "_CAN_USE_FLASH_ATTN_3",
    "sageattention": "_CAN_USE_SAGE_ATTN",
}
"""Attention packages, which look at the GPU when they are imported, and how diffusers notes that it has them."""

_ATTENTION_NAMES = {
    "flash_attn": "flash_attn_func flash_attn_varlen_func",
    "flash_attn.flash_attn_interface": "_wrapped_flash_attn_backward _wrapped_flash_attn_forward",
    "flash_attn_interface": "flash_attn_func flash_attn_varlen_func",
    "sageattention": "sageattn sageattn_varlen sageattn_qk_int8_pv_fp8_cuda sageattn_qk_int8_pv_fp8_cuda_sm90 "
    "sageattn_qk_int8_pv_fp16_cuda sageattn_qk_int8_pv_fp16_triton",
}
_TRAINING_NAMES = {
    "peft": "PeftModel",
    "peft.helpers": "disable_input_dtype_casting",
    "peft.tuners.tuners_utils": "BaseTunerLayer",
    "scipy.optimize": "linear_sum_assignment",
    "sklearn.metrics": "roc_curve",
}
# They bring every quantization package that is installed, and those look at the GPU.
_QUANTIZATION_NAMES = {
    "diffusers.quantizers.auto": "DiffusersAutoQuantizer",
    "diffusers.quantizers.bitsandbytes.utils": "_check_bnb_status",
    "transformers.quantizers.auto": "AutoHfQuantizer AutoQuantizationConfig get_hf_quantizer "
    "register_quantization_config register_quantizer",
}
# Each of the first five brings sympy, and nearly all of torch.distributed; the others are what uses them at its top.
_MANY_GPU_NAMES = {
    "torch.distributed._composable.fsdp": "fully_shard",
    "torch.distributed.fsdp": "CPUOffloadPolicy FullyShardedDataParallel MixedPrecisionPolicy",
    "torch.distributed.tensor": "DTensor Partial Replicate Shard distribute_tensor",
    "torch.distributed.tensor._utils": "compute_local_shape_and_global_offset",
    "torch.distributed.tensor.placement_types": "Shard _StridedShard",
    "transformers.distributed.checkpoint": "_get_resolved_distributed_checkpoint_files get_distributed_checkpoint_dir "
    "_load_model_checkpoint_distributed _save_model_checkpoint_distributed consolidate_distributed_checkpoint",
    "transformers.distributed.expert_parallel": "apply_expert_parallelism",
    "transformers.distributed.parallel_utils": "_get_parameter_plan replace_layer_number_by_wildcard",
    "transformers.distributed.sharding_utils": "DtensorShardOperation _dtensor_from_local_like _tied_params_are_equal",
    "transformers.distributed.tensor_parallel": "_get_parameter_plan _get_parameter_tp_plan "
    "_validate_parallel_plan_styles _validate_tp_plan_styles apply_expert_parallelism resolve_parallel_plans "
    "apply_tensor_parallelism gather_state_dict_for_save get_kv_heads_per_rank replace_layer_number_by_wildcard "
    "verify_tp_plan",
}
_COMPILER_NAMES = {
    "torch._dynamo._trace_wrapped_higher_order_op": "TransformGetItemToIndex",
    "torch._dynamo.utils": "is_compile_supported",
}


def make_proxies() -> dict[str, Mapping[str, Any]]:
    """A proxy for each name, by the module that it is imported from."""
    listed = _ATTENTION_NAMES | _TRAINING_NAMES | _QUANTIZATION_NAMES | _MANY_GPU_NAMES | _COMPILER_NAMES
    made: dict[str, dict[str, Any]] = {
        module: {name: NameProxy(module, name) for name in names.split()} for module, names in listed.items()
    }
    made["scipy"] = {"integrate": ModuleProxy("scipy.integrate")}
    # The modules that fill this registry are deferred: take it from the one that imports both.
    styles = NameProxy("transformers.integrations.tensor_parallel", "ALL_PARALLEL_STYLES")
    made["transformers.distributed.parallel_utils"]["ALL_PARALLEL_STYLES"] = styles
    return dict(made)
