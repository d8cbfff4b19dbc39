"""What a stored pipeline needs of a device's memory, by its configs and its files' headers: nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wanstore._json import read_json
from wanstore.building._check import check_pipeline
from wanstore.building._weight_files import open_weights
from wanstore.building._weight_transfer import stays_float32
from wanstore.components import COMPONENTS
from wanstore.errors import DamagedError
from wanstore.loading.memory import Needs, weight_bytes


def needs_of_folder(folder: Path, dtypes: Mapping[str, str]) -> Needs:
    """Of the pipeline in `folder`; those in `dtypes`, which are as `check_dtypes` gives them, compute in float32.

    Raises what `load` raises of a folder that holds no such pipeline, or not all of it.
    """
    check_pipeline(folder)
    configs = {component: read_json(folder / component / "config.json") for component in COMPONENTS}
    with open_weights(folder) as files:
        weights = {
            component: weight_bytes(
                {tensor.name: tensor.elements for file in group for tensor in file.tensors},
                stays_float32(component, dtypes),
            )
            for component, group in files.items()
        }
    try:
        return Needs.of(weights, configs, dtypes)
    except KeyError as error:
        raise DamagedError(f"{folder}: a config.json does not say {error}", "Run setup again with --replace") from error
