"""What a pipeline was prepared from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from wanstore.building._check import check_same
from wanstore.choices import CompileMode, MemoryMode
from wanstore.manifest import Manifest
from wanstore.memory._plan import MemoryPlan


@attrs.frozen
class Origin:
    """The folder, and how it was asked to be loaded: weights come from there later, too.

    An unsealed folder has no manifest. `dtypes` are as `check_dtypes` gives them. `functions` are folders of compiled
    functions that the store keeps beside the pipeline, whatever they were made for. Of a pipeline that was `streamed`
    the folder is gone.
    """

    folder: Path
    manifest: Manifest | None
    asked_attention: str | None
    dtypes: Mapping[str, str]
    memory: MemoryMode | MemoryPlan
    compile: CompileMode = "off"
    functions: tuple[Path, ...] = ()
    streamed: bool = False

    @property
    def attention(self) -> str | None:
        """The attention backend to use on a GPU: the one asked for, or the one that the manifest records."""
        noted = self.manifest.notes.get("attention") if self.manifest else None
        return self.asked_attention or noted

    @property
    def compiles(self) -> bool:
        """Whether blocks may come to run compiled, so that torch's compiler is needed."""
        return self.compile == "on" or (self.compile == "cached" and bool(self.functions))

    def offloads_on(self, device_type: str) -> bool:
        """Whether components are offloaded on such a device: on a CPU only if that was asked for."""
        return self.memory != "resident" and (self.memory != "auto" or device_type == "cuda")

    def check_same(self) -> None:
        """Raise `ChangedError`, or `NotFoundError`, unless the folder still holds what it held."""
        if self.manifest is not None and not self.streamed:
            check_same(self.folder, self.manifest)
