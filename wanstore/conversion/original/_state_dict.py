"""What the pickle of a state dict says, without unpickling it.

To unpickle is to let the file call functions. `torch.load(weights_only=True)` does so too, by a list of what may be
called, and has been led around it (CVE-2025-32434). Here nothing is called: the standard library's `pickletools` cuts
the pickle into instructions, which runs none of them. Those that `torch.save` writes for a dict of tensors are followed
on a stack of plain values; any other is refused. And it needs the pickle alone, so that a file's first bytes will do.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from wanstore._formats._safetensors import HeaderError

_STORAGES = {
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
}


@attrs.frozen
class Storage:
    """A run of `elements` numbers in the record `key` of the archive."""

    dtype: str
    key: str
    elements: int


@attrs.frozen
class View:
    """A tensor: its shape and strides, and where in its storage it begins, all in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@attrs.frozen
class _Named:
    """A class or function that the pickle names. It is neither looked up nor imported."""

    name: str


def read_state_dict(pickled: bytes) -> dict[str, View]:
    """The tensors of a state dict by their names. Raises `HeaderError` for every other pickle."""
    try:
        state = _Reading().follow(pickled)
    except HeaderError:
        raise
    # What does not fit together shows on the stack: too little on it, values of another type.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise HeaderError("its pickle is malformed") from error
    if not isinstance(state, dict) or not state:
        raise HeaderError("its pickle is not a dict of tensors")
    for name, value in state.items():
        if not isinstance(value, View):
            raise HeaderError(f"its value {reprlib.repr(name)} is not a tensor")
    return state


class _Reading:
    """The stack, the marks in it and the numbered values, as far as the instructions have been followed."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def follow(self, pickled: bytes) -> Any:
        """The value that the pickle stands for: dicts, tuples, text, numbers, and the classes above."""
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name not in self._STEPS:
                raise HeaderError(f"its pickle has the instruction {opcode.name}, which no weights need")
            self._STEPS[opcode.name](self, argument)
        raise HeaderError("its pickle has no end")

    def _nothing(self, _: Any) -> None: ...

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _memorize(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _tuple(self, size: int) -> None:
        items = [self._stack.pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def _global(self, name: str) -> None:
        if name not in _STORAGES and name not in _CALLS:
            raise HeaderError(f"its pickle asks for {reprlib.repr(name.replace(' ', '.'))}, which no weights need")
        self._stack.append(_Named(name))

    def _storage(self, _: Any) -> None:
        kind, stored_as, key, _, elements = self._stack.pop()
        if kind != "storage" or type(key) is not str or not _is_count(elements):
            raise HeaderError("its pickle describes a storage in another way than torch.save")
        self._stack.append(Storage(_STORAGES[stored_as.name], key, elements))

    def _call(self, _: Any) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        self._stack.append(_CALLS[called.name](*arguments))

    def _drop_attributes(self, _: Any) -> None:
        self._stack.pop()  # of the dict, such as the versions of modules

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise HeaderError("its pickle has a dict with keys that are not text")
            if key in target:
                raise HeaderError(f"{reprlib.repr(key)} is there twice")
            target[key] = value

    _STEPS: ClassVar[dict[str, Callable[[_Reading, Any], None]]] = {
        "PROTO": _nothing,
        **dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NONE"), _push),
        "NEWTRUE": lambda self, _: self._push(True),
        "NEWFALSE": lambda self, _: self._push(False),
        "EMPTY_TUPLE": lambda self, _: self._push(()),
        "EMPTY_DICT": lambda self, _: self._push({}),
        "MARK": _mark,
        "TUPLE": lambda self, _: self._push(tuple(self._since_mark())),
        "TUPLE1": lambda self, _: self._tuple(1),
        "TUPLE2": lambda self, _: self._tuple(2),
        "TUPLE3": lambda self, _: self._tuple(3),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _memorize),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), _recall),
        "GLOBAL": _global,
        "BINPERSID": _storage,
        "REDUCE": _call,
        "SETITEM": lambda self, _: self._set_items([self._stack.pop(-2), self._stack.pop()]),
        "SETITEMS": lambda self, _: self._set_items(self._since_mark()),
        "BUILD": _drop_attributes,
    }


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, _requires_grad: Any, _hooks: Any) -> View:
    fits = isinstance(storage, Storage) and type(shape) is type(strides) is tuple and len(shape) == len(strides)
    if not fits or not all(map(_is_count, (offset, *shape, *strides))):
        raise HeaderError("its pickle describes a tensor in another way than torch.save")
    return View(storage, offset, shape, strides)


def _parameter(data: Any, _requires_grad: Any, _hooks: Any) -> Any:
    return data


def _empty_dict() -> dict[str, Any]:
    return {}


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _empty_dict,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
"""What stands here for each function that a pickle of weights names."""
