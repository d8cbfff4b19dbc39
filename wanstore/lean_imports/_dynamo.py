"""PyTorch's compiler, `torch._dynamo`, kept out until somebody compiles something.

Libraries import it, and with it sympy and half of torch, to mark a few functions for it at their top. The marks
are kept and applied when it is imported. Until then nothing is compiled, so nobody needs to import it
to ask whether something is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib import import_module
from types import FunctionType
from typing import Any

from wanstore.lean_imports._deferred_names import IMPORTERS
from wanstore.lean_imports._proxies import ModuleProxy, NameProxy, after_import, replaced, resolve

_DYNAMO = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result")
"""Decorators that return what they are given."""
_KEPT: list[tuple[str, Any]] = []
"""Marks and what they were put on, to be applied later. Like the compiler, this belongs to the whole process."""


@contextmanager
def dynamo_deferred(names: dict[str, Mapping[str, Any]]) -> Iterator[None]:
    """While the block runs, marks are kept; after it `torch._dynamo` is imported when it is first used.

    `names` gets the proxies for what is imported from it.
    """
    if _DYNAMO in sys.modules:
        yield
        return
    import torch

    names[_DYNAMO] = marks = {mark: partial(_mark, mark) for mark in _MARKS}
    if not isinstance(vars(torch).get("_dynamo"), ModuleProxy):
        compiled = NameProxy(f"{_DYNAMO}.eval_frame", "OptimizedModule")
        evaluation = ModuleProxy(f"{_DYNAMO}.eval_frame", OptimizedModule=compiled)
        torch._dynamo = ModuleProxy(_DYNAMO, eval_frame=evaluation, **marks)  # else torch imports it for who looks
        after_import(_DYNAMO, _make_up)
    with replaced(
        torch.compiler,
        disable=partial(_disable, torch.compiler.disable),
        allow_in_graph=marks["allow_in_graph"],
        assume_constant_result=marks["assume_constant_result"],
    ):
        yield


def _mark(mark: str, subject: Any) -> Any:
    if _DYNAMO in sys.modules:
        return getattr(import_module(_DYNAMO), mark)(subject)
    _KEPT.append((mark, subject))
    return subject


def _make_up(dynamo: Any) -> None:
    """The compiler was imported after all: let it find what it would have found."""
    for mark, subject in _KEPT:
        getattr(dynamo, mark)(subject)
    dynamo.eval_frame.skip_code(_disable(_disable, _mark).__code__)  # which all that was disabled late have
    resolve(IMPORTERS, "torch")  # names that it knows in the code that it looks into


def _disable(real: Any, subject: Any = None, recursive: bool = True, **options: Any) -> Any:
    """`torch.compiler.disable` of a function, which takes effect when the compiler is there."""
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
