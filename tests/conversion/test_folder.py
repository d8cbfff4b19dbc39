"""A folder as a source: what may not be read is told from what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wanstore.conversion.folder import FolderSource
from wanstore.conversion.fp16 import Fp16Converter
from wanstore.errors import AccessError
from wanstore.interfaces import Quiet
from wanstore.testing.converters import write_pipeline


@pytest.mark.parametrize("path", ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_file_that_may_not_be_read_says_so(unprivileged: Path, path: str) -> None:
    """Its head, the plan and the fetch all name it, and none calls it damaged."""
    folder = write_pipeline(unprivileged / "source", {"transformer": [{"a": torch.zeros(4)}]})
    (folder / path).chmod(0)
    source = FolderSource(folder)
    for read in (
        lambda: source.head(path, 8),
        lambda: source.tail(path, 8),
        lambda: source.fetch(path, folder, Quiet()),
        lambda: Fp16Converter().plan(source),
    ):
        with pytest.raises(AccessError, match=rf"{path} cannot be read \(permission denied\)"):
            read()


@pytest.mark.parametrize(("size", "end"), [(0, b""), (2, b"de"), (5, b"abcde"), (9, b"abcde")])
def test_the_end_of_a_file(tmp_path: Path, size: int, end: bytes) -> None:
    """All of it if it is shorter."""
    (tmp_path / "x").write_bytes(b"abcde")
    assert FolderSource(tmp_path).tail("x", size) == end


@pytest.mark.parametrize("path", [".", "vae"])
@pytest.mark.parametrize("mode", [0, 0o300, 0o600], ids=oct)
def test_a_folder_that_may_not_be_listed_is_not_taken_for_empty(unprivileged: Path, path: str, mode: int) -> None:
    """Nor one whose files may not be reached."""
    folder = write_pipeline(unprivileged / "source", {"transformer": [{"a": torch.zeros(4)}]})
    (folder / path).chmod(mode)
    with pytest.raises(AccessError, match="cannot be read"):
        FolderSource(folder)
    (folder / path).chmod(0o700)
