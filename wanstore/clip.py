"""A clip's size, in its own pixels and frames and in those of the models. Needs no more than attrs, as presets do."""

from __future__ import annotations

import attrs

SPATIAL, TEMPORAL = 8, 4
"""Pixels of the clip along an edge of a latent one, and frames of a latent one, but for the first."""


@attrs.frozen
class Clip:
    """A clip's size: pixels, frames, and how many are made at once."""

    width: int
    height: int
    frames: int
    batch: int = 1

    def __str__(self) -> str:
        many = f"{self.batch} clips" if self.batch > 1 else "A clip"
        return f"{many} of {self.width}×{self.height} and {self.frames} frames"

    @property
    def latent_frames(self) -> int:
        """The VAE makes one of the first frame, and of each four after it."""
        return (self.frames - 1) // TEMPORAL + 1

    @property
    def tokens(self) -> int:
        """What the transformer sees of it: a token is a patch of 1 × 2 × 2 latent pixels, 16 × 16 of the clip's."""
        return self.batch * self.latent_frames * (self.height // 16) * (self.width // 16)
