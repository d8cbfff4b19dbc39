"""An open safetensors file: its header, and the descriptor that header and data are read by."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from wanstore._error_translation import unreadable
from wanstore._formats._safetensors import HeaderError, Tensor, read_header
from wanstore.errors import DamagedError

_REPAIR = "Run setup again with --replace"


@attrs.frozen
class WeightFile:
    """An open safetensors file; its tensors in the order of their data.

    Header and data are read by the one `descriptor`: whatever takes the file's place meanwhile, they belong
    together. `modified_ns` is when it was last written, as of opening it.
    """

    path: Path
    tensors: tuple[Tensor, ...]
    descriptor: int
    modified_ns: int

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data, the header not counted."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def tensor_at(self, position: int) -> str:
        """The name of the tensor that holds byte `position` of the file."""
        return next(tensor.name for tensor in self.tensors if tensor.stop > position)

    def check_unchanged(self) -> None:
        """Raise `DamagedError` when the file was written to since it was opened."""
        status = os.fstat(self.descriptor)
        end = max((tensor.stop for tensor in self.tensors), default=status.st_size)
        if status.st_size != end or status.st_mtime_ns != self.modified_ns:
            raise DamagedError(f"{self.path} was written to while it was read", "Load again; run wanstore verify")


@contextmanager
def open_weight_file(path: Path) -> Iterator[WeightFile]:
    """One file, its header read; raises `DamagedError` when it is no well-formed safetensors file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise DamagedError(f"{path} is not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise unreadable(path) from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})", _REPAIR) from error
    try:
        yield _with_header(path, descriptor)
    finally:
        os.close(descriptor)


def _with_header(path: Path, descriptor: int) -> WeightFile:
    try:
        status = os.fstat(descriptor)
        tensors = read_header(lambda count: os.pread(descriptor, count, 0), status.st_size)
    except (HeaderError, OSError) as error:
        raise DamagedError(f"{path}: {error}", _REPAIR) from error
    return WeightFile(path, tensors, descriptor, status.st_mtime_ns)
