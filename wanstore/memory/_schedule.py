"""Which components are on the device while a clip is made: in each phase, the ones that the clip's plan names."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import torch

from wanstore.errors import WanstoreError
from wanstore.memory._estimate import MemoryEstimate, choose_plan
from wanstore.memory._offload import Offloader
from wanstore.memory._origin import Origin
from wanstore.memory._plan import PHASES, MemoryPlan
from wanstore.memory._vae import make_lean
from wanstore.presets import ClipSize


@attrs.define
class OffloadSchedule:
    """Moves components for the phases of a pipeline's clips. Whoever uses it holds `lock`, the pipeline's own."""

    lock: threading.RLock
    vae: Any
    origin: Origin
    offloader: Offloader
    estimate: MemoryEstimate
    plan: MemoryPlan
    _in_clip: bool = False

    @contextmanager
    def clip(self, clip: ClipSize) -> Iterator[None]:
        """A clip is made in the block. Raises `DeviceMemoryError` when there is no plan for it."""
        self._choose(clip)
        self._in_clip = True
        try:
            yield
            self._rest()
        finally:
            self._in_clip = False
            self.offloader.cancel_return()

    def enter(self, phase: str) -> None:
        """Have the components of a phase on the device, and no others."""
        present = self.plan.present(phase)
        self.offloader.offload_all_but(present, from_host=self.plan.from_host)
        self.offloader.bring_back(present)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """The VAE decodes in the block. After it the text encoder starts on its way back, while frames are copied."""
        with self.lock:
            self.enter("decoding")
            yield
            if self._in_clip:
                with suppress(WanstoreError):  # it is tried again before the next prompt, which reports it
                    self._start_return()

    def _choose(self, clip: ClipSize) -> None:
        if self.origin.memory == "auto":
            self.plan = choose_plan(self.estimate, clip, budget_bytes(self.offloader.device))
            self.vae.tiles = self.plan.tiles

    def _rest(self) -> None:
        """Be ready for the next prompt. The clip is not lost if that fails: the next one tries again."""
        with suppress(WanstoreError):
            self._start_return()
            self.offloader.bring_back(self.plan.present("text_encoding"))

    def _start_return(self) -> None:
        present = self.plan.present("text_encoding")
        self.offloader.offload_all_but(present, from_host=self.plan.from_host)
        self.offloader.start_return(present)


def make_schedule(models: Mapping[str, Any], origin: Origin, lock: threading.RLock) -> OffloadSchedule:
    """A schedule for the models of a pipeline, prepared from `origin`; their VAE decodes by it from now on."""
    vae = models["vae"]
    make_lean(vae)
    offloader = Offloader(models, origin)
    configs = {
        "transformer": models["transformer"].config,
        "text_encoder": models["text_encoder"].config.to_dict(),
        "vae": vae.config,
    }
    estimate = MemoryEstimate.of(offloader.weight_bytes, configs, origin.dtypes)
    schedule = OffloadSchedule(lock, vae, origin, offloader, estimate, _first_plan(origin, offloader))
    vae.around_decode, vae.tiles = schedule.decoding, schedule.plan.tiles
    return schedule


def _first_plan(origin: Origin, offloader: Offloader) -> MemoryPlan:
    """The plan that was asked for, or one to encode and decode under before there is a clip to choose it for."""
    if isinstance(origin.memory, MemoryPlan):
        return origin.memory
    if origin.memory == "offload":
        return MemoryPlan(("text_encoder",))
    return MemoryPlan(tuple(PHASES.values()) if offloader.has_offloaded else ())


def budget_bytes(device: torch.device) -> int:
    """What torch may take of a GPU's memory: what it has, and what is free, up to the share that it is held to."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return int(min(free + torch.cuda.memory_reserved(device), share * total))
