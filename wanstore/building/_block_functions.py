"""A transformer's blocks, compiled ahead of time: one function by torch's compiler serves them all.

The blocks of a Wan 2.1 transformer are alike, and each runs on inputs of one shape. So `forward` of one block is
compiled with the block itself as its first argument: parameters are read from it at each call, wherever they are by
then. The function is kept as bytes, and another process loads it in a second where compiling takes ten.

Functions are code. `load_function` unpickles: give it only what comes from a store that may run code here.
"""

from __future__ import annotations

import io
import logging
import platform
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import diffusers
import torch
from diffusers.models import activations, attention, attention_dispatch, normalization
from diffusers.models.transformers import transformer_wan
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from wanstore._error_translation import first_line, lacks_memory
from wanstore._files import hash_file
from wanstore._formats._json import digest_of
from wanstore._installed import versions
from wanstore.building._artifacts import Shape

_LOG = logging.getLogger("wanstore")
_COMPILING = threading.RLock()
"""torch's compiler is no thing for two threads."""
_TRACED = (transformer_wan, attention_dispatch, attention, normalization, activations)
"""The modules of diffusers whose code ends up in functions."""
_MOST_FUNCTIONS = 4
"""Of one shape: a block may be run in some states, as in train and eval mode, but not compiled for ever new ones."""


def import_compiler() -> None:
    """Import torch's compiler, which takes seconds. No device is asked for."""
    import_module("torch._dynamo").config.enable_aot_compile = True  # newer torch has it always on
    import_module("torch._inductor.compile_fx")


def describe(transformer: Any, device: Any, attention: str) -> dict[str, str]:
    """All that functions for the transformer's blocks depend on, but shapes. Asks for the device."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    sources = [hash_file(Path(str(module.__file__))) for module in _TRACED]
    found = versions(("torch", "triton", "diffusers"))
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        where = {"device": torch.cuda.get_device_name(device), "architecture": f"sm_{major}{minor}"}
    else:
        where = {"device": platform.machine(), "architecture": torch.backends.cpu.get_cpu_capability()}
    return {
        **where,
        **found,
        "torch": torch.__version__,  # with the CUDA that it was built for
        "dtype": str(transformer.dtype).removeprefix("torch."),
        "attention": attention,
        "transformer": digest_of({"config": config, "sources": sources})[:16],
    }


def compile_block(block: Any, inputs: tuple[Any, ...]) -> bytes:
    """The function of `block` and all that are like it, for such `inputs`. Raises whatever torch's compiler raises."""
    import_compiler()
    static = torch._dynamo.config.patch(automatic_dynamic_shapes=False)  # torch 2.10 does not look at `dynamic` here
    with _COMPILING, torch.no_grad(), _no_device_asked(inputs[0].device), static:
        compiled: Any = torch.compile(type(block).forward, fullgraph=True, options={"guard_filter_fn": _kept_guards})
        function = compiled.aot_compile(((block, *_contiguous(inputs)), {}))
        with tempfile.TemporaryDirectory() as folder:  # what makes bytes differs from version to version
            path = Path(folder, "function")
            function.save_compiled_function(str(path))
            return path.read_bytes()


def _kept_guards(guards: Iterable[Any]) -> list[bool]:
    """Of torch's guards, those that can be kept, and that bear on what a function computes.

    That of the process's state would bind functions to the number of threads: to the cores of the machine that made
    them. Those of parameters would bind them to whether they want gradients. `BlockFunctions` looks at what else is in
    the two.
    """
    unsupported = import_module("torch._dynamo.guards").CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES
    dropped = {*unsupported, "GLOBAL_STATE"}
    return [
        not (guard.is_global or guard.guard_type in dropped)
        and not (guard.guard_type == "TENSOR_MATCH" and "_parameters" in guard.name)
        for guard in guards
    ]


def load_function(data: bytes, device: torch.device) -> Any:
    """The function in `data`, for blocks on `device`. Raises whatever torch raises of what it cannot use."""
    import_compiler()
    with _COMPILING, _no_device_asked(device):
        return torch.compiler.load_compiled_function(io.BytesIO(data))


def why(error: Exception) -> str:
    """What is wrong, in one line, by an error of torch's compiler."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{first_line(error)[:60]}… failed: triton needs a working C compiler, such as gcc with libc6-dev"
    return first_line(error)


class BlockFunctions:
    """Runs a transformer's blocks by the functions that fit, and all else as it was.

    Inputs of a shape that has no function run eagerly, or are compiled first if `compiles`, with a warning in the log.
    So does a block that is not what was compiled: with LoRA layers, hooks, another attention backend, other dtypes or
    code, under autograd or autocast. That is looked at for each call, in microseconds, by torch's guards and by
    `_structure`. What the user compiles takes the place of this. A function that fails is dropped. Where there is a
    function and it cannot be used, the log says so, once.
    """

    def __init__(self, functions: Mapping[Shape, Any], *, compiles: bool = False) -> None:
        self._functions = {shape: [function] for shape, function in functions.items()}
        self._failed: set[Shape] = set()
        self._compiles = compiles
        self._paused = False
        self._warned = False
        self._structure: Any = None
        self.runs = 0
        """How many times a block was run by a function."""

    def add(self, shape: Shape, function: Any) -> None:
        """Run inputs of that shape by `function` from now on."""
        self._functions.setdefault(shape, []).append(function)

    def attach(self, transformer: Any) -> None:
        """Run the transformer's blocks from now on, which are as they were when functions were made."""
        self._structure = _structure(transformer.blocks[0])
        for block in transformer.blocks:
            # A copy or a pickle of a module leaves this out, and `module.compile()` replaces it.
            block._compiled_call_impl = partial(self._run, weakref.ref(block))

    def detach(self, transformer: Any) -> None:
        """Have blocks run as before, but for those that somebody else has compiled."""
        for block in transformer.blocks:
            if getattr(block._compiled_call_impl, "func", None) == self._run:
                block._compiled_call_impl = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs, all runs as it was before."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _run(self, reference: Any, *inputs: Any, **named: Any) -> Any:
        block = reference()
        if self._paused or named or _is_special(inputs):
            return block._call_impl(*inputs, **named)
        shape = (inputs[0].shape[0], inputs[0].shape[1])
        if shape in self._failed or not (self._compiles or shape in self._functions):
            return block._call_impl(*inputs)
        given, structure = _contiguous(inputs), _structure(block, inputs[0].device)
        try:
            function = self._fitting(block, shape, given) if structure and structure == self._structure else None
            if function is not None:
                result = function.fn(block, *given)
                self.runs += 1
                return result
            if shape in self._functions and not self._warned:
                self._warned = True
                _LOG.warning(
                    "blocks are not what was compiled (an adapter, a hook, other code, a setting), and run eagerly"
                )
        except Exception as error:
            if lacks_memory(error):
                raise
            self._failed.add(shape)
            told = "blocks for %d × %d tokens cannot run compiled, and run eagerly: %s"
            _LOG.warning(told, *shape, why(error))
        return block._call_impl(*inputs)

    def _fitting(self, block: Any, shape: Shape, given: tuple[Any, ...]) -> Any:
        """The function for these inputs, compiled now if need be; None if they are to run eagerly."""

        def found() -> Any:
            return next((one for one in self._functions.get(shape, ()) if one.guard_check(block, *given)), None)

        fitting = found()
        if fitting is not None or not self._compiles:
            return fitting
        with _COMPILING:
            if (fitting := found()) is None and len(self._functions.get(shape, ())) < _MOST_FUNCTIONS:
                told = "compiling the transformer's blocks for %d × %d tokens: that takes a while, once"
                _LOG.warning(told, *shape)
                self.add(shape, load_function(compile_block(block, given), given[0].device))
                fitting = found()
        return fitting


def _contiguous(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in one layout: the first block's may be laid out otherwise than those of the others."""
    return tuple(
        _contiguous(one) if isinstance(one, tuple) else one.contiguous() if isinstance(one, torch.Tensor) else one
        for one in inputs
    )


def _is_special(inputs: tuple[Any, ...]) -> bool:
    """Whether the call, or the process, is in a state that functions were not made for."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.are_deterministic_algorithms_enabled()
        or torch._C._len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
        or not inputs
        or not isinstance(inputs[0], torch.Tensor)
        or inputs[0].dim() != 3
        or torch.is_autocast_enabled(inputs[0].device.type)
    )


def _structure(block: Any, device: torch.device | None = None) -> Any:
    """What torch's guards do not look at, equal for blocks that a function may run; None where it may not.

    The code that runs, and parameters but their values and whether they want gradients. None where hooks would be
    passed by, and where parameters are not on the `device`, if one is given.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return None
    found: list[Any] = [torch.nn.functional.scaled_dot_product_attention, transformer_wan.dispatch_attention_fn]
    for module in block.modules():
        own = vars(module)
        forward = own.get("forward")
        if module._forward_hooks or module._forward_pre_hooks or not _is_own(module, forward):
            return None
        found.append(type(module).forward)
        if processor := own.get("processor"):
            found.append(type(processor).__call__)
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        if device and any(parameter.device != device for parameter in parameters):
            return None
        found += [(parameter.shape, parameter.dtype) for parameter in parameters]
    return found


def _is_own(module: Any, forward: Any) -> bool:
    """Whether what stands in a module's place for `forward` is nothing, or what diffusers' hooks leave: its own."""
    kind: Any = type(module)
    return forward is None or (getattr(forward, "__self__", None) is module and forward.__func__ is kind.forward)


def is_patched(block: Any) -> bool:
    """Whether code that a function was made of has been replaced by somebody else's."""
    homes = tuple(f"{Path(str(library.__file__)).parent}/" for library in (torch, diffusers))

    def is_theirs(one: Any) -> bool:
        if one is torch.nn.functional.scaled_dot_product_attention:
            return isinstance(one, BuiltinFunctionType)
        return hasattr(one, "__code__") and one.__code__.co_filename.startswith(homes)

    return not all(is_theirs(one) for one in _structure(block) or () if not isinstance(one, tuple))


class _Hidden(threading.local):
    """Whether this thread is to find no GPU."""

    is_set = False


_HIDDEN = _Hidden()


@contextmanager
def _no_device_asked(device: torch.device) -> Iterator[None]:
    """While the block runs, torch finds no GPU from this thread if `device` is a CPU. One thread at a time.

    It would ask, to record what compiled a function. But CUDA's answer holds for the life of a process, and one that
    goes into a CPU memory snapshot must not have asked.
    """
    if device.type == "cuda" or _HIDDEN.is_set:
        yield
        return
    asked = torch.cuda.is_available
    torch.cuda.is_available = lambda: False if _HIDDEN.is_set else asked()
    _HIDDEN.is_set = True
    try:
        yield
    finally:
        torch.cuda.is_available, _HIDDEN.is_set = asked, False
