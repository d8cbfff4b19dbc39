"""A pipeline whose parts make room for one another, by a plan for each clip."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import diffusers
import torch

from wanstore.errors import WanstoreError
from wanstore.loading.lean_vae import make_lean
from wanstore.loading.memory import STAGES, MemoryPlan, Needs, choose_plan
from wanstore.loading.residency import Residency
from wanstore.presets import Clip

if TYPE_CHECKING:
    from wanstore.loading.activation import Origin

_PROMPTS = 16
"""Prompts whose embeddings are kept, 4 MB each: negative prompts repeat, and so do prompts with other seeds."""
_CALL = diffusers.WanPipeline.__call__


class WanPipeline(diffusers.WanPipeline):  # type: ignore[misc]
    """diffusers' own; see `stage`. One clip is made at a time: another thread's call waits."""

    wanstore_staging: Staging

    @functools.wraps(_CALL)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        staging = self.wanstore_staging
        with staging.residency.lock, staging.clip(_clip_of(self, *args, **kwargs)):
            return super().__call__(*args, **kwargs)

    @property
    def memory_plan(self) -> MemoryPlan:
        """The plan by which the last clip was made; before there is one, that by which a prompt is encoded."""
        return self.wanstore_staging.plan

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        staging = self.wanstore_staging
        with staging.residency.lock:
            embeddings = super().encode_prompt(*args, **kwargs)
            staging.enter("denoising")
            return embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        with self.wanstore_staging.residency.lock:
            self.wanstore_staging.residency.need(STAGES.values())
            super().save_pretrained(*args, **kwargs)

    def _get_t5_prompt_embeds(self, prompt: Any = None, *args: Any, **kwargs: Any) -> Any:
        staging = self.wanstore_staging
        key = repr((prompt, args, sorted(kwargs.items())))
        if key not in staging.prompts:
            staging.enter("text")
            with torch.no_grad():  # a graph behind them would keep the text encoder's weights
                staging.prompts[key] = super()._get_t5_prompt_embeds(prompt, *args, **kwargs)
        staging.prompts.move_to_end(key)
        if len(staging.prompts) > _PROMPTS:
            staging.prompts.popitem(last=False)
        return staging.prompts[key]


@attrs.define
class Staging:
    """A pipeline's stages: which components are there in each, by the plan of the clip."""

    pipe: Any
    origin: Origin
    residency: Residency
    needs: Needs
    plan: MemoryPlan
    prompts: OrderedDict[str, torch.Tensor] = attrs.field(factory=OrderedDict)
    _in_clip: bool = False

    @contextmanager
    def clip(self, clip: Clip) -> Iterator[None]:
        """A clip is made in the block. Raises `DeviceMemoryError` when there is no plan for it."""
        self._choose(clip)
        self._in_clip = True
        try:
            yield
            self._rest()
        finally:
            self._in_clip = False
            self.residency.stop()

    def enter(self, stage: str) -> None:
        """Have the components of a stage on the device, and no others."""
        present = self.plan.present(stage)
        self.residency.keep_only(present, from_host=self.plan.from_host)
        self.residency.need(present)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """The VAE decodes in the block. Behind it the text encoder sets out on its way back, beside what is left."""
        with self.residency.lock:
            self.enter("decoding")
            yield
            if self._in_clip:
                with suppress(WanstoreError):  # it is tried again before the next prompt, which hears of it
                    self._set_out()

    def _choose(self, clip: Clip) -> None:
        if self.origin.memory == "auto":
            self.plan = choose_plan(self.needs, clip, budget_bytes(self.pipe.device))
            self.pipe.vae.tiles = self.plan.tiles

    def _rest(self) -> None:
        """Be ready for the next prompt. The clip is not lost if that fails: the next one tries again."""
        with suppress(WanstoreError):
            self._set_out()
            self.residency.need(self.plan.present("text"))

    def _set_out(self) -> None:
        present = self.plan.present("text")
        self.residency.keep_only(present, from_host=self.plan.from_host)
        self.residency.begin(present)


def stage(pipe: Any) -> None:
    """Have a pipeline, as `load` made it, make each clip by a plan of its memory; its origin says which."""
    if isinstance(pipe, WanPipeline):
        return
    origin = pipe.wanstore_origin
    make_lean(pipe.vae)
    residency = Residency(pipe, origin)
    text = pipe.text_encoder.config.to_dict()
    configs = {"transformer": pipe.transformer.config, "text_encoder": text, "vae": pipe.vae.config}
    needs, plan = Needs.of(residency.weight_bytes, configs, origin.dtypes), _first_plan(origin, residency)
    pipe.wanstore_staging = Staging(pipe, origin, residency, needs, plan)
    pipe.vae.watcher, pipe.vae.tiles = pipe.wanstore_staging, plan.tiles
    pipe.__class__ = WanPipeline


def _first_plan(origin: Origin, residency: Residency) -> MemoryPlan:
    """The plan that was asked for, or one to encode and decode by before there is a clip to choose it for."""
    if isinstance(origin.memory, MemoryPlan):
        return origin.memory
    if origin.memory == "streamed":
        return MemoryPlan(("text_encoder",))
    return MemoryPlan(tuple(STAGES.values()) if residency.lacks_some else ())


def budget_bytes(device: torch.device) -> int:
    """What torch may take of a GPU's memory: what it has, and what is free, up to the share that it is held to."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return int(min(free + torch.cuda.memory_reserved(device), share * total))


def _clip_of(pipe: Any, *args: Any, **kwargs: Any) -> Clip:
    """The size of the clip that a call asks for."""
    bound = inspect.signature(_CALL).bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    asked = bound.arguments
    prompts = asked["prompt"] if asked["prompt"] is not None else asked["prompt_embeds"]
    count = 1 if isinstance(prompts, str) or prompts is None else len(prompts)
    return Clip(asked["width"], asked["height"], asked["num_frames"], count * (asked["num_videos_per_prompt"] or 1))
