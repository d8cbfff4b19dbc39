"""Which components are on the device in each phase of a clip."""

from __future__ import annotations

from typing import get_args

import attrs

from wanstore.choices import MemoryMode
from wanstore.errors import NotSupportedError

PHASES = {"text_encoding": "text_encoder", "denoising": "transformer", "decoding": "vae"}
"""The phases of a clip, and the component that works in each."""
OUTPUT = "output"
"""What follows them: the frames are copied to the caller, and the text encoder may be back already."""
TILES = (1, 2, 4, 8)


@attrs.frozen
class MemoryPlan:
    """Where a pipeline's components are while a clip is made. Needs no torch.

    No plan changes a clip, except that more than one tile may round differently.

    Attributes:
        offloaded: the components that are on the device only for the phase that they work in. They are read back from
            the store before it. The text encoder comes back as soon as a clip is decoded, for the next prompt.
        tiles: 1, 2, 4 or 8: in how many parts each frame is decoded.
        from_host: keep the weights of offloaded components in host memory, and bring them back from there.

    Raises:
        NotSupportedError: there is no such component or number of tiles.
    """

    offloaded: tuple[str, ...] = ()
    tiles: int = 1
    from_host: bool = False

    def __attrs_post_init__(self) -> None:
        unknown = set(self.offloaded) - set(PHASES.values())
        if unknown or self.tiles not in TILES:
            raise NotSupportedError(
                f"There is no plan with {', '.join(unknown) or f'{self.tiles} tiles'}",
                f"Offload some of {', '.join(PHASES.values())}, and decode in {', '.join(map(str, TILES))} tiles",
            )

    def present(self, phase: str) -> tuple[str, ...]:
        """The components on the device in a phase: `text_encoding`, `denoising` or `decoding`."""
        return tuple(name for works, name in PHASES.items() if works == phase or name not in self.offloaded)

    def __str__(self) -> str:
        parts = [f"{' and '.join(self.offloaded)} offloaded" if self.offloaded else "all resident"]
        parts += ["from host memory"] if self.from_host else []
        parts += [f"decoded in {self.tiles} tiles"] if self.tiles > 1 else []
        return ", ".join(parts)


def check_memory(asked: object) -> None:
    """Raise `NotSupportedError` unless it is a `MemoryMode` or a `MemoryPlan`."""
    if asked not in get_args(MemoryMode) and not isinstance(asked, MemoryPlan):
        raise NotSupportedError(f"Memory can't be {asked!r}", "Choose auto, resident, offload or a MemoryPlan")
