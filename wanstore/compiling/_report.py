"""What became of each preset that blocks were to be compiled for. Plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from wanstore._formats._json import to_json


@attrs.frozen
class CompiledPreset:
    """One preset: `made`, `kept` where the store had its function, or `failed`, and why.

    Attributes:
        preset: its name.
        status: as above.
        seconds: what compiling took.
        difference: root mean square of what the compiled blocks changed in a denoised latent, over the latent's own.
        reason: why it failed.
    """

    preset: str
    status: str
    seconds: float = 0.0
    difference: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.status == "made":
            return f"{self.preset}: made in {self.seconds:.1f} s, differs from eager blocks by {self.difference:.1e}"
        return f"{self.preset}: {'is there already' if self.status == 'kept' else f'failed: {self.reason}'}"


@attrs.frozen
class CompileReport:
    """What was compiled, for what, and the store's name of the folder that holds it; "" where there is none.

    Attributes:
        folder: as above.
        made_for: device, versions, dtype, attention backend and transformer that the functions fit.
        presets: what became of each.
    """

    folder: str
    made_for: Mapping[str, str]
    presets: tuple[CompiledPreset, ...]

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps(to_json(self), indent=2)
