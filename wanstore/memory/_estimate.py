"""What a clip needs of a device's memory, phase by phase, and the plan under which it fits. Arithmetic: no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._json import read_json
from wanstore.building._check import check_pipeline
from wanstore.building._dtypes import stays_float32
from wanstore.building._weight_files import open_weights
from wanstore.components import COMPONENTS
from wanstore.errors import DamagedError, DeviceMemoryError
from wanstore.memory._plan import OUTPUT, PHASES, TILES, MemoryPlan
from wanstore.memory._tiles import cut
from wanstore.presets import SPATIAL, ClipSize

GIB = 2**30
COMFORTABLE, FULL = 0.8, 0.95
"""Shares of a device's memory: a plan that leaves a fifth free is preferred, one that leaves less than 5 % is none."""
_OFFLOADED: tuple[tuple[str, ...], ...] = ((), ("text_encoder",), ("text_encoder", "transformer", "vae"))
"""Quickest first: bringing back the text encoder takes some 0.3 s a clip from page cache, the others 0.1 s."""


@attrs.frozen
class MemoryEstimate:
    """What a pipeline's memory depends on: bytes of each component's weights on the device, and the models' widths."""

    weights: Mapping[str, int]
    hidden: int
    feed_forward: int
    text_heads: int
    text_feed_forward: int
    vae_channels: int
    item_bytes: Mapping[str, int]

    @classmethod
    def of(cls, weights: Mapping[str, int], configs: Mapping[str, Any], wide: Iterable[str] = ()) -> MemoryEstimate:
        """From the components' configs; those in `wide` compute in float32, the others in float16."""
        transformer, text, vae = configs["transformer"], configs["text_encoder"], configs["vae"]
        return cls(
            weights=dict(weights),
            hidden=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            feed_forward=transformer["ffn_dim"],
            text_heads=text["num_heads"],
            text_feed_forward=text["d_ff"],
            vae_channels=vae["base_dim"],
            item_bytes={component: 4 if component in wide else 2 for component in PHASES.values()},
        )

    @classmethod
    def of_folder(cls, folder: Path, dtypes: Mapping[str, str]) -> MemoryEstimate:
        """From a pipeline folder's configs and headers, without loading it.

        Components in `dtypes`, as `check_dtypes` gives them, compute in float32. Raises what `load` raises for a folder
        that does not hold such a pipeline, or not all of it.
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
            return cls.of(weights, configs, dtypes)
        except KeyError as error:
            raise DamagedError(f"{folder}: a config.json lacks {error}", "Run setup again with --replace") from error

    def peaks(self, plan: MemoryPlan, clip: ClipSize) -> dict[str, int]:
        """Peak bytes of each phase, as torch's allocator counts them."""
        working = {
            "text_encoding": self._text(clip),
            "denoising": self._denoising(clip),
            "decoding": self._decoding(plan, clip),
        }
        peaks = {phase: self._present(plan, phase) + own for phase, own in working.items()}
        return peaks | {OUTPUT: self._present(plan, "text_encoding") + self._frames(clip) * 5 // 2}

    def peak(self, plan: MemoryPlan, clip: ClipSize) -> int:
        """Peak bytes of the whole clip."""
        return max(self.peaks(plan, clip).values())

    def _present(self, plan: MemoryPlan, phase: str) -> int:
        return sum(self.weights[component] for component in plan.present(phase))

    # What follows was fitted to an H100's figures with full-size weights; docs/memory.md sets the two side by side.

    def _text(self, clip: ClipSize) -> int:
        tokens = 512
        return clip.batch * tokens * (14 * self.text_heads * tokens + 16 * self.text_feed_forward)

    def _denoising(self, clip: ClipSize) -> int:
        """The largest is the feed-forward's hidden layer, before and after its activation."""
        wide = self.item_bytes["transformer"]
        return clip.tokens * wide * (2 * self.feed_forward + 5 * self.hidden)

    def _decoding(self, plan: MemoryPlan, clip: ClipSize) -> int:
        """The frames, and for each pixel of a tile some fifty feature maps: eight convolutions' caches, and work."""
        height, width = clip.height // SPATIAL, clip.width // SPATIAL
        tiles = cut(height, width, plan.tiles)
        pixels = SPATIAL**2 * max(tile.pixels for tile in tiles)
        middle = 4 * self.vae_channels * height * width * clip.latent_frames if len(tiles) > 1 else 0
        work = clip.batch * self.item_bytes["vae"] * (51 * self.vae_channels * pixels + middle)
        return work + self._frames(clip)

    def _frames(self, clip: ClipSize) -> int:
        return clip.batch * self.item_bytes["vae"] * 3 * clip.frames * clip.height * clip.width


def weight_bytes(elements: Mapping[str, int], is_wide: Callable[[str], bool]) -> int:
    """Bytes of a component's weights on the device, from each tensor's elements; `is_wide` says which are float32."""
    return sum(count * (4 if is_wide(name) else 2) for name, count in elements.items())


def choose_plan(estimate: MemoryEstimate, clip: ClipSize, budget_bytes: int) -> MemoryPlan:
    """The quickest plan that leaves a fifth of `budget_bytes` free; if none does, the first that fits at all.

    Raises `DeviceMemoryError` naming the smallest plan when none fits.
    """
    plans = [MemoryPlan(offloaded, tiles) for tiles in TILES for offloaded in _OFFLOADED]
    for share in (COMFORTABLE, FULL):
        for plan in plans:
            if estimate.peak(plan, clip) <= share * budget_bytes:
                return plan
    smallest = min(plans, key=lambda plan: estimate.peak(plan, clip))
    peaks = estimate.peaks(smallest, clip)
    phase = max(peaks, key=lambda name: peaks[name])
    needs = peaks[phase] / FULL / GIB
    raise DeviceMemoryError(
        f"{clip} needs {needs:.1f} GiB in {phase.replace('_', ' ')} under the smallest plan ({smallest}), "
        f"{budget_bytes / GIB:.1f} are free",
        "Free the device's memory or take a larger one"
        + ("" if phase == "text_encoding" else ", or make the clip smaller"),
    )
