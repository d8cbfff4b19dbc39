"""The libraries that a load needs, imported in half the time.

What `import` costs is mostly what libraries import at their top and a load never uses: PyTorch's compiler,
scikit-learn, scipy, peft. Those come when they are first used instead, and then they are the real ones. Python's
cyclic garbage collector pauses, and questions that libraries ask several times are answered once.

Each of these measures looks at what it finds, and does nothing where that is not what it expects. When an
import fails all the same it is done again without any of them.
"""

from __future__ import annotations

import gc
import importlib.metadata
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from wanstore.loading.stand_ins import (
    ModuleStandIn,
    NameStandIn,
    after_import,
    replaced,
    settle,
    standing_in,
)

_LIBRARIES = ("torch", "wanstore.loading.assemble", "wanstore.loading.tokenizer")
_IMPORTERS = ("diffusers", "transformers")
_DYNAMO = "torch._dynamo"
_ATTENTION = {
    "xformers": "_CAN_USE_XFORMERS_ATTN",
    "flash_attn": "_CAN_USE_FLASH_ATTN",
    "flash_attn_interface": "_CAN_USE_FLASH_ATTN_3",
    "sageattention": "_CAN_USE_SAGE_ATTN",
}
"""Attention packages, which ask for the GPU when they are imported, and how diffusers notes that it has them."""
_MODULES = ("scipy.stats", "xformers", "xformers.ops")
_SAGE = "sageattn_qk_int8_pv_"
_NAMES = {
    "peft.helpers": ("disable_input_dtype_casting",),
    "peft.tuners.tuners_utils": ("BaseTunerLayer",),
    "scipy.optimize": ("linear_sum_assignment",),
    "sklearn.metrics": ("roc_curve",),
    f"{_DYNAMO}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "torch.distributed._composable.fsdp": ("fully_shard",),
    "torch.distributed.fsdp": ("CPUOffloadPolicy", "FullyShardedDataParallel", "MixedPrecisionPolicy"),
    "torch.distributed.tensor": ("DTensor", "Partial", "Replicate", "Shard", "distribute_tensor"),
    "torch.distributed.tensor._utils": ("compute_local_shape_and_global_offset",),
    "torch.distributed.tensor.placement_types": ("Shard", "_StridedShard"),
    "transformers.distributed.checkpoint": (
        *("_get_resolved_distributed_checkpoint_files", "get_distributed_checkpoint_dir"),
    ),
    "transformers.distributed.tensor_parallel": (
        *("_get_parameter_tp_plan", "_validate_tp_plan_styles", "apply_tensor_parallelism"),
        *("gather_state_dict_for_save", "replace_layer_number_by_wildcard", "verify_tp_plan"),
    ),
    "transformers.distributed.sharding_utils": (
        *("DtensorShardOperation", "_dtensor_from_local_like", "_tied_params_are_equal"),
    ),
    "flash_attn": ("flash_attn_func", "flash_attn_varlen_func"),
    "flash_attn.flash_attn_interface": ("_wrapped_flash_attn_backward", "_wrapped_flash_attn_forward"),
    "flash_attn_interface": ("flash_attn_func", "flash_attn_varlen_func"),
    "sageattention": (
        *("sageattn", "sageattn_varlen", f"{_SAGE}fp8_cuda", f"{_SAGE}fp8_cuda_sm90"),
        *(f"{_SAGE}fp16_cuda", f"{_SAGE}fp16_triton"),
    ),
}
"""Functions and classes that are called, or looked for by isinstance, in features that a load does not use."""
_IMPORTING = threading.Lock()


def import_libraries() -> None:
    """Import torch, and of diffusers, transformers and accelerate what a load needs; raises what importing raises.

    Attention packages are put off with the rest, so that no GPU is touched: see `settle_attention`.
    """
    if not _IMPORTING.acquire(blocking=False):  # another thread is at it: import locks keep the two apart
        _import_all()
        return
    try:
        with collection_paused():
            import_module("torch")
            with _put_off(), replaced(importlib.metadata, packages_distributions=_PackageMap):
                after_import("transformers.utils.import_utils", _scan_models_quickly)
                _import_all()
    except Exception:  # noqa: BLE001  whatever it was: if it was not ours, the plain import raises it again
        _import_all()
    finally:
        _IMPORTING.release()


def settle_attention() -> None:
    """Import the attention packages that were put off, as diffusers would have; to be called once a GPU may be used.

    One that can't be imported counts as not installed from then on, with a warning as diffusers gives it.
    """
    for package, flag in _ATTENTION.items():
        try:
            settle(_IMPORTERS, package)
        except (ImportError, OSError, RuntimeError) as error:  # those that diffusers expects
            dispatch = import_module("diffusers.models.attention_dispatch")
            setattr(dispatch, flag, False)
            dispatch.logger.warning(f"{package} failed to import: {error}. Falling back to native attention.")


@contextmanager
def collection_paused() -> Iterator[None]:
    """While the block runs there is no cyclic garbage collection: imports make objects by the million, to stay."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else thawing would undo somebody's freezing
            gc.freeze()
            gc.unfreeze()  # all counts as old now, so the next collection does not go through it
        gc.enable()


def _import_all() -> None:
    for name in _LIBRARIES:
        import_module(name)


class _PackageMap(Mapping[str, list[str]]):
    """`importlib.metadata.packages_distributions()`, which reads every package's list of files, when it is needed.

    transformers and diffusers ask for it when they are imported, and then only for packages that have a
    distribution of their own name.
    """

    def __init__(self) -> None:
        self._whole: Mapping[str, list[str]] | None = None

    def __getitem__(self, package: str) -> list[str]:
        if self._whole is None and _IMPORTING.locked():
            with suppress(importlib.metadata.PackageNotFoundError):
                return [importlib.metadata.distribution(package).metadata["Name"]]
        return self._all()[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> Mapping[str, list[str]]:
        if self._whole is None:
            self._whole = _packages_distributions()
        return self._whole


_packages_distributions = importlib.metadata.packages_distributions


def _scan_models_quickly(utils: Any) -> None:
    """Let transformers look for the names that its models' files export once, not twice, and at their ends only."""
    scan, find_names = getattr(utils, "create_import_structure_from_path", None), getattr(utils, "fetch__all__", None)
    if not scan or not find_names or not hasattr(scan, "cache_info"):
        return

    def scan_folder(path: str | Path) -> Any:  # which a file in it stands for as well
        return scan(str(Path(path).parent if Path(path).is_file() else path))

    utils.create_import_structure_from_path = scan_folder
    utils.fetch__all__ = lambda text: find_names(text[text.rfind("\n__all__") + 1 :])  # the last one in a file counts


@contextmanager
def _put_off() -> Iterator[None]:
    """While the block runs, what is used rarely gets stand-ins, PyTorch's compiler above all."""
    names: dict[str, dict[str, Any]] = {
        module: {name: NameStandIn(module, name) for name in known} for module, known in _NAMES.items()
    }
    names["scipy"] = {"integrate": ModuleStandIn("scipy.integrate")}
    with ExitStack() as stack:
        if _DYNAMO not in sys.modules:
            import torch

            marked: list[tuple[str, Any]] = []
            marks = {name: partial(_mark, name, marked) for name in ("allow_in_graph", "assume_constant_result")}
            after_import(_DYNAMO, partial(_make_up, marked))
            names[_DYNAMO] = marks
            disable = partial(_disable, torch.compiler.disable)
            stack.enter_context(replaced(torch.compiler, disable=disable, allow_in_graph=marks["allow_in_graph"]))
            # torch would import it for whoever looks, such as those who look whether a model is a compiled one.
            compiled = NameStandIn(f"{_DYNAMO}.eval_frame", "OptimizedModule")
            evaluation = ModuleStandIn(f"{_DYNAMO}.eval_frame", OptimizedModule=compiled)
            torch._dynamo = ModuleStandIn(_DYNAMO, eval_frame=evaluation, **marks)
        stack.enter_context(standing_in(_IMPORTERS, _MODULES, names))
        yield


def _mark(mark: str, marked: list[tuple[str, Any]], subject: Any) -> Any:
    """A decorator of torch._dynamo that returns what it is given; `marked` notes what it has to be given later."""
    if _DYNAMO in sys.modules:
        return getattr(import_module(_DYNAMO), mark)(subject)
    marked.append((mark, subject))
    return subject


def _make_up(marked: list[tuple[str, Any]], dynamo: Any) -> None:
    """The compiler was imported after all: let it find what it would have found."""
    for mark, subject in marked:
        getattr(dynamo, mark)(subject)
    # All functions that were disabled late have this code.
    dynamo.eval_frame.skip_code(_disable(_disable, _mark).__code__)
    settle(_IMPORTERS, "torch", "transformers")  # it looks into code that uses their names


def _disable(real: Any, subject: Any = None, recursive: bool = True, **options: Any) -> Any:
    """`torch.compiler.disable` of a function: where nothing was compiled yet there is nothing to disable."""
    if subject is None and not options:
        return partial(_disable, real, recursive=recursive)
    if not isinstance(subject, FunctionType) or options:
        return real(subject, recursive, **options)

    @wraps(subject)
    def function(*args: Any, **kwargs: Any) -> Any:
        return disabled()(*args, **kwargs) if _DYNAMO in sys.modules else subject(*args, **kwargs)

    disabled = cache(partial(real, subject, recursive))
    # What the compiler knows a disabled function by.
    vars(function).update(
        _torchdynamo_disable=True,
        _torchdynamo_disable_msg=None,
        _torchdynamo_disable_recursive=recursive,
        _torchdynamo_orig_callable=subject,
        _torchdynamo_wrapper_id=id(function),
    )
    return function
