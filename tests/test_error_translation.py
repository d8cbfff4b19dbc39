"""What the operating system refuses, as its reader needs it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wanstore._error_translation import lacks_memory, of_system


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EBUSY])
def test_a_refusal_names_the_path_and_a_next_step(number: int) -> None:
    """Of the error or of who asked; never by its number."""
    error = OSError(number, os.strerror(number), "of/the/error")
    for told, place in ((of_system(error), "of/the/error"), (of_system(error, Path("asked/for")), "asked/for")):
        assert told.what == f"{place}: {os.strerror(number)}" and told.next_step
        assert "Errno" not in str(told)


def test_a_refusal_without_number_or_path_says_what_it_says() -> None:
    """Libraries raise such, too."""
    assert str(of_system(OSError("the hub hung up.\nmore"))).startswith("the hub hung up. ")
    assert of_system(OSError(errno.ENOSPC, "no room")).what == os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error: BaseException, lacking: bool) -> None:
    """By what torch says, which has no class of its own for most."""
    assert lacks_memory(error) is lacking
