"""What a clip needs of a device's memory, stage by stage, and the plan by which it fits. Arithmetic: no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import attrs

from wanstore.errors import DeviceMemoryError, NotSupportedError
from wanstore.loading.tiles import cut
from wanstore.presets import SPATIAL, Clip

GIB = 2**30
STAGES = {"text": "text_encoder", "denoising": "transformer", "decoding": "vae"}
"""The stages of a clip, and the component that works in each."""
OUTPUT = "output"
"""What follows them: frames become the caller's, and the text encoder may be back already."""
COMFORTABLE, FULL = 0.8, 0.95
"""Shares of a device's memory: a plan that leaves a fifth free is preferred, one that leaves less than 5 % is none."""
TILES = (1, 2, 4, 8)
_STREAMED: tuple[tuple[str, ...], ...] = ((), ("text_encoder",), ("text_encoder", "transformer", "vae"))
"""Quickest first: coming back takes the text encoder some 0.3 s a clip from page cache, the others 0.1 s."""


@attrs.frozen
class MemoryPlan:
    """Where a pipeline's parts are while a clip is made.

    Components in `streamed` are on the device for the stage that they work in, and are read anew from the store, or
    `from_host` memory, before the next: of those the text encoder waits on the device for the next prompt. The clip is
    decoded in `tiles`. No plan changes a clip, but that more than one tile may round differently.
    """

    streamed: tuple[str, ...] = ()
    tiles: int = 1
    from_host: bool = False

    def __attrs_post_init__(self) -> None:
        unknown = set(self.streamed) - set(STAGES.values())
        if unknown or self.tiles not in TILES:
            raise NotSupportedError(
                f"There is no plan with {', '.join(unknown) or f'{self.tiles} tiles'}",
                f"Stream some of {', '.join(STAGES.values())}, and decode in {', '.join(map(str, TILES))} tiles",
            )

    def present(self, stage: str) -> tuple[str, ...]:
        """The components on the device in a stage."""
        return tuple(name for works, name in STAGES.items() if works == stage or name not in self.streamed)

    def __str__(self) -> str:
        parts = [f"{' and '.join(self.streamed)} streamed" if self.streamed else "all resident"]
        parts += ["from host memory"] if self.from_host else []
        parts += [f"decoded in {self.tiles} tiles"] if self.tiles > 1 else []
        return ", ".join(parts)


MemoryName = Literal["auto", "resident", "streamed"]
Memory = MemoryName | MemoryPlan
"""How much of a device a pipeline may take. `resident`: all parts stay, and diffusers' own VAE decodes. `streamed`:
the text encoder makes room. `auto`: for each clip the quickest plan that fits."""


def check_memory(asked: object) -> None:
    """Raise `NotSupportedError` unless it is one of `Memory`."""
    if asked not in get_args(MemoryName) and not isinstance(asked, MemoryPlan):
        raise NotSupportedError(f"Memory can't be {asked!r}", "Choose auto, resident, streamed or a MemoryPlan")


@attrs.frozen
class Needs:
    """What a pipeline's memory depends on: the bytes of each component's weights on the device, and its widths."""

    weights: Mapping[str, int]
    hidden: int
    feed_forward: int
    text_heads: int
    text_feed_forward: int
    vae_channels: int
    item_bytes: Mapping[str, int]

    @classmethod
    def of(cls, weights: Mapping[str, int], configs: Mapping[str, Any], wide: Iterable[str] = ()) -> Needs:
        """By the components' configs; those in `wide` compute in float32, the others in float16."""
        transformer, text, vae = configs["transformer"], configs["text_encoder"], configs["vae"]
        return cls(
            weights=dict(weights),
            hidden=transformer["num_attention_heads"] * transformer["attention_head_dim"],
            feed_forward=transformer["ffn_dim"],
            text_heads=text["num_heads"],
            text_feed_forward=text["d_ff"],
            vae_channels=vae["base_dim"],
            item_bytes={component: 4 if component in wide else 2 for component in STAGES.values()},
        )

    def peaks(self, plan: MemoryPlan, clip: Clip) -> dict[str, int]:
        """Bytes at most in each stage, as torch's allocator hands them out."""
        working = {"text": self._text(clip), "denoising": self._denoising(clip), "decoding": self._decoding(plan, clip)}
        peaks = {stage: self._present(plan, stage) + own for stage, own in working.items()}
        return peaks | {OUTPUT: self._present(plan, "text") + self._frames(clip) * 5 // 2}

    def peak(self, plan: MemoryPlan, clip: Clip) -> int:
        """Bytes at most."""
        return max(self.peaks(plan, clip).values())

    def _present(self, plan: MemoryPlan, stage: str) -> int:
        return sum(self.weights[component] for component in plan.present(stage))

    # What follows was fitted to an H100's figures with full-size weights; docs/memory.md sets the two side by side.

    def _text(self, clip: Clip) -> int:
        tokens = 512
        return clip.batch * tokens * (14 * self.text_heads * tokens + 16 * self.text_feed_forward)

    def _denoising(self, clip: Clip) -> int:
        """The largest is the feed-forward's hidden layer, before and after its activation."""
        wide = self.item_bytes["transformer"]
        return clip.tokens * wide * (2 * self.feed_forward + 5 * self.hidden)

    def _decoding(self, plan: MemoryPlan, clip: Clip) -> int:
        """The frames, and for each pixel of a tile some fifty feature maps: eight convolutions' caches, and work."""
        height, width = clip.height // SPATIAL, clip.width // SPATIAL
        tiles = cut(height, width, plan.tiles)
        pixels = SPATIAL**2 * max(tile.pixels for tile in tiles)
        middle = 4 * self.vae_channels * height * width * clip.latent_frames if len(tiles) > 1 else 0
        work = clip.batch * self.item_bytes["vae"] * (51 * self.vae_channels * pixels + middle)
        return work + self._frames(clip)

    def _frames(self, clip: Clip) -> int:
        return clip.batch * self.item_bytes["vae"] * 3 * clip.frames * clip.height * clip.width


def weight_bytes(elements: Mapping[str, int], is_wide: Callable[[str], bool]) -> int:
    """Bytes of a component's weights on the device, by each tensor's elements; `is_wide` says which are float32."""
    return sum(count * (4 if is_wide(name) else 2) for name, count in elements.items())


def choose_plan(needs: Needs, clip: Clip, budget_bytes: int) -> MemoryPlan:
    """The quickest plan that leaves a fifth of `budget_bytes` free; if none does, the first that fits at all.

    Raises `DeviceMemoryError` naming the smallest plan when none fits.
    """
    plans = [MemoryPlan(streamed, tiles) for tiles in TILES for streamed in _STREAMED]
    for share in (COMFORTABLE, FULL):
        for plan in plans:
            if needs.peak(plan, clip) <= share * budget_bytes:
                return plan
    smallest = min(plans, key=lambda plan: needs.peak(plan, clip))
    peaks = needs.peaks(smallest, clip)
    stage = max(peaks, key=lambda name: peaks[name])
    asks = peaks[stage] / FULL / GIB
    raise DeviceMemoryError(
        f"{clip} needs {asks:.1f} GiB in {stage} by the smallest plan ({smallest}), {budget_bytes / GIB:.1f} are free",
        "Free the device's memory or take a larger one" + ("" if stage == "text" else ", or make the clip smaller"),
    )
