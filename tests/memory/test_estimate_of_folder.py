"""What a folder says of the memory that its pipeline needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wanstore.errors import DamagedError, NotFoundError
from wanstore.loading._load import load_folder as load
from wanstore.memory._estimate import MemoryEstimate


@pytest.mark.parametrize("dtypes", [{}, {"vae": "float32"}, {"text_encoder": "float32", "transformer": "float32"}])
def test_it_is_what_the_loaded_pipeline_goes_by(tiny_fp16: Path, dtypes: dict[str, str]) -> None:
    """To the byte, in every dtype."""
    pipe = load(tiny_fp16, device="cpu", sealed=False, dtype=dtypes, memory="offload")
    assert pipe._schedule
    assert MemoryEstimate.of_folder(tiny_fp16, dtypes) == pipe._schedule.estimate


def test_a_folder_without_a_pipeline_is_an_error(tmp_path: Path) -> None:
    """The one that loading it would be."""
    with pytest.raises(NotFoundError, match="not a pipeline folder"):
        MemoryEstimate.of_folder(tmp_path, {})


def test_a_config_that_lacks_a_size_is_an_error(tiny_copy: Path) -> None:
    """It names what is not there."""
    path = tiny_copy / "transformer/config.json"
    config = json.loads(path.read_text())
    del config["ffn_dim"]
    path.write_text(json.dumps(config))
    with pytest.raises(DamagedError, match="ffn_dim"):
        MemoryEstimate.of_folder(tiny_copy, {})
