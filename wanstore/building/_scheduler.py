"""The scheduler, as the folder's own files describe it."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers import SchedulerMixin

from wanstore._formats._json import read_json
from wanstore.building._config import known_config, reason
from wanstore.errors import DamagedError, NotSupportedError


def load_scheduler(folder: Path) -> Any:
    """The scheduler that model_index.json names, with its config.

    Raises `NotSupportedError` for an unknown one, `DamagedError` when its config is none.
    """
    named: Any = read_json(folder / "model_index.json").get("scheduler")
    library, name = named if isinstance(named, list) and len(named) == 2 else (None, None)
    scheduler_class = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise NotSupportedError(f"{folder / 'model_index.json'} names no scheduler of diffusers: {reprlib.repr(named)}")
    build: Any = scheduler_class
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    try:
        return build.from_config(known_config(config, build))
    except Exception as error:  # as with the models: a broken config fails in many ways
        raise DamagedError(
            f"{path} does not describe a {name} ({reason(error)})", "Run setup again with --replace"
        ) from error
