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
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from wanstore._error_translation import first_line, lacks_memory
from wanstore._formats._json import digest_of
from wanstore._installed import versions
from wanstore.building._artifacts import Shape

_LOG = logging.getLogger("wanstore")


def import_compiler() -> None:
    """Import torch's compiler, which takes seconds. No device is asked for."""
    import_module("torch._dynamo").config.enable_aot_compile = True  # newer torch has it always on
    import_module("torch._inductor.compile_fx")


def describe(transformer: Any, device: Any, attention: str) -> dict[str, str]:
    """All that functions for the transformer's blocks depend on, but shapes. Asks for the device."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
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
        "transformer": digest_of(config)[:16],
    }


def compile_block(block: Any, inputs: tuple[Any, ...]) -> bytes:
    """The function of `block` and all that are like it, for such `inputs`. Raises whatever torch's compiler raises."""
    import_compiler()
    with torch.no_grad(), _no_device_asked(inputs[0].device):
        compiled: Any = torch.compile(type(block).forward, fullgraph=True, options={"guard_filter_fn": _kept_guards})
        function = compiled.aot_compile(((block, *_contiguous(inputs)), {}))
        data: bytes = type(function).serialize(function).serialized_data
    return data


def _kept_guards(guards: Iterable[Any]) -> list[bool]:
    """All that can be kept of torch's guards, but that of the process's state.

    It would bind functions to the number of threads: to the cores of the machine that made them. What else is in it is
    asked for at each call, or bears on nothing in a block.
    """
    unsupported = import_module("torch._dynamo.guards").CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES
    dropped = {*unsupported, "GLOBAL_STATE"}
    return [not (guard.is_global or guard.guard_type in dropped) for guard in guards]


def load_function(data: bytes, device: torch.device) -> Any:
    """The function in `data`, for blocks on `device`. Raises whatever torch raises of what it cannot use."""
    import_compiler()
    with _no_device_asked(device):
        return torch.compiler.load_compiled_function(io.BytesIO(data))


def why(error: Exception) -> str:
    """What is wrong, in one line, by an error of torch's compiler."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"{first_line(error)[:60]}… failed: triton needs a working C compiler, such as gcc with libc6-dev"
    return first_line(error)


class BlockFunctions:
    """Runs a transformer's blocks by the functions that fit, and all else as it was.

    Inputs of a shape that has no function run eagerly, or are compiled first if `compiles`, once and with a warning in
    the log. So does a block that is not what was compiled: with LoRA layers, hooks, another attention backend, other
    dtypes, or under autograd. torch's own guards tell, in microseconds. What the user compiles takes the place of this.
    A function that fails is dropped.
    """

    def __init__(self, functions: dict[Shape, Any], *, compiles: bool = False) -> None:
        self._functions = dict(functions)
        self._compiles = compiles
        self._paused = False
        self.runs = 0
        """How many times a block was run by a function."""

    def add(self, shape: Shape, function: Any) -> None:
        """Run inputs of that shape by `function` from now on."""
        self._functions[shape] = function

    def attach(self, transformer: Any) -> None:
        """Run the transformer's blocks from now on."""
        for block in transformer.blocks:
            # A copy or a pickle of a module leaves this out, and `module.compile()` replaces it.
            block._compiled_call_impl = partial(self._run, weakref.ref(block))

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
        if self._paused or named or _is_special(inputs[0].device) or _is_hooked(block):
            return block._call_impl(*inputs, **named)
        shape = tuple(inputs[0].shape[:2])
        if shape not in self._functions and self._compiles:
            self._compile(block, shape, inputs)
        function = self._functions.get(shape)
        if function is None:
            return block._call_impl(*inputs)
        given = _contiguous(inputs)
        if not function.guard_check(block, *given):
            return block._call_impl(*inputs)
        try:
            result = function.fn(block, *given)
        except Exception as error:
            if lacks_memory(error):
                raise
            self._drop(shape, error)
            return block._call_impl(*inputs)
        self.runs += 1
        return result

    def _compile(self, block: Any, shape: Shape, inputs: tuple[Any, ...]) -> None:
        _LOG.warning("compiling the transformer's blocks for %d × %d tokens: that takes a while, once", *shape)
        try:
            self._functions[shape] = load_function(compile_block(block, inputs), inputs[0].device)
        except Exception as error:
            if lacks_memory(error):
                raise
            self._drop(shape, error)

    def _drop(self, shape: Shape, error: Exception) -> None:
        self._functions[shape] = None
        told = "blocks for %d × %d tokens cannot run compiled, and run eagerly: %s"
        _LOG.warning(told, *shape, why(error))


def _contiguous(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs in one layout: the first block's may be laid out otherwise than those of the others."""
    return tuple(
        _contiguous(one) if isinstance(one, tuple) else one.contiguous() if isinstance(one, torch.Tensor) else one
        for one in inputs
    )


def _is_special(device: torch.device) -> bool:
    """Whether the process is in a state that functions were not made for."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(device.type)
        or torch.are_deterministic_algorithms_enabled()
    )


def _is_hooked(block: Any) -> bool:
    """Whether a hook, or another `forward`, would be passed by: torch's guards do not look at hooks."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks or "forward" in vars(block):
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())


@contextmanager
def _no_device_asked(device: torch.device) -> Iterator[None]:
    """While the block runs, torch finds no GPU if `device` is a CPU.

    It would ask, to record what compiled a function. But CUDA's answer holds for the life of a process, and one that
    goes into a CPU memory snapshot must not have asked.
    """
    if device.type == "cuda":
        yield
        return
    asked = torch.cuda.is_available
    torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = asked
