"""The pipeline that `load` returns."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import diffusers
import torch
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

from wanstore.building._block_functions import BlockFunctions
from wanstore.errors import NotActivatedError
from wanstore.loading._report import LoadReport
from wanstore.memory import MemoryPlan
from wanstore.memory._origin import Origin
from wanstore.memory._plan import PHASES
from wanstore.memory._schedule import OffloadSchedule, make_schedule
from wanstore.presets import ClipSize

_KEPT_PROMPTS = 16
"""Prompts whose embeddings are kept, 4 MB each: negative prompts repeat, and so do prompts with other seeds."""


class WanPipeline(diffusers.WanPipeline):  # type: ignore[misc]
    """diffusers' `WanPipeline`, as `wanstore.load` returns it.

    Everything that works with diffusers' class works with this one. One clip is made at a time, in every memory mode:
    a call from a second thread waits.

    Attributes:
        load_report: where the time of the load went.
        activation_report: the same for `wanstore.activate`; None until it was called.
        lock: held while a clip is made. Hold it to do several things to the pipeline that belong together.
    """

    load_report: LoadReport
    activation_report: LoadReport | None = None
    lock: threading.RLock

    _origin: Origin
    _deferred = False
    _ready_on: torch.device | None = None
    """The device that the attention backend and compiled blocks were set up on."""
    _functions: BlockFunctions | None = None
    """What runs the transformer's blocks, if they may run compiled."""
    _schedule: OffloadSchedule | None = None
    _prompts: OrderedDict[str, torch.Tensor]

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Set here, because diffusers takes a pipeline's components from the signature of `__init__`."""
        self: Self = super().__new__(cls)
        self.lock, self._prompts = threading.RLock(), OrderedDict()
        return self

    @property
    def memory_plan(self) -> MemoryPlan | None:
        """The plan under which the last clip was made; before there is one, that under which a prompt is encoded.

        None with `memory="resident"`, with `memory="auto"` on a CPU, and until deferred weights are activated.
        """
        return self._schedule.plan if self._schedule else None

    def predicted_peaks(self, clip: ClipSize) -> dict[str, int]:
        """Peak bytes of each phase of such a clip under the current `memory_plan`; empty where there is no plan."""
        return self._schedule.estimate.peaks(self._schedule.plan, clip) if self._schedule else {}

    def forget_prompts(self) -> None:
        """Drop the embeddings of earlier prompts, so that the next clip encodes its prompts again."""
        self._prompts.clear()

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str | None = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Any]] | Any | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006  as diffusers has it; not changed
        max_sequence_length: int = 512,
    ) -> WanPipelineOutput:
        """Make a clip; the arguments are those of diffusers' `WanPipeline`.

        Returns:
            `frames`: with `output_type="np"` an array of clips × frames × height × width × 3, from 0 to 1.

        Raises:
            NotActivatedError: the weights were deferred, and `wanstore.activate` was not called yet.
            DeviceMemoryError: no memory plan fits such a clip.
            ChangedError, NotFoundError, DamagedError: an offloaded component could not be read back.
        """
        asked = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        with self.lock, _no_inference_mode(asked) if self._functions else nullcontext():
            self._check_activated()
            with self._schedule.clip(_size_of(asked)) if self._schedule else nullcontext():
                return super().__call__(**asked)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """As diffusers' own; raises `NotActivatedError` as a call does."""
        with self.lock:
            self._check_activated()
            embeddings = super().encode_prompt(*args, **kwargs)
            if self._schedule:
                self._schedule.enter("denoising")
            return embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own; offloaded components are brought back first."""
        with self.lock:
            if self._schedule:
                self._schedule.offloader.bring_back(PHASES.values())
            super().save_pretrained(*args, **kwargs)

    def _get_t5_prompt_embeds(self, prompt: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self._schedule is None:
            return super()._get_t5_prompt_embeds(prompt, *args, **kwargs)
        key = repr((prompt, args, sorted(kwargs.items())))
        if key not in self._prompts:
            self._schedule.enter("text_encoding")
            with torch.no_grad():  # a graph would keep the text encoder's weights
                self._prompts[key] = super()._get_t5_prompt_embeds(prompt, *args, **kwargs)
        self._prompts.move_to_end(key)
        if len(self._prompts) > _KEPT_PROMPTS:
            self._prompts.popitem(last=False)
        return self._prompts[key]

    def _offload_by_plan(self) -> None:
        """Make each clip under a plan of the device's memory from now on; the pipeline's origin says which."""
        if self._schedule is None:
            models = {name: getattr(self, name) for name in PHASES.values()}
            self._schedule = make_schedule(models, self._origin, self.lock)

    def _check_activated(self) -> None:
        if self._deferred:
            raise NotActivatedError(
                "This pipeline has no weights yet: it was loaded with weights='deferred'",
                "Call wanstore.activate(pipe, device) first",
            )


@contextmanager
def _no_inference_mode(asked: dict[str, Any]) -> Iterator[None]:
    """Compiled blocks take no tensors that were made under inference mode. The caller's callback keeps its own mode."""
    on_step = asked["callback_on_step_end"]
    if torch.is_inference_mode_enabled() and callable(on_step) and not hasattr(on_step, "tensor_inputs"):
        asked["callback_on_step_end"] = torch.inference_mode()(on_step)
    with torch.inference_mode(False):
        yield


def _size_of(asked: Mapping[str, Any]) -> ClipSize:
    """The size of the clip that a call asks for."""
    prompts = asked["prompt"] if asked["prompt"] is not None else asked["prompt_embeds"]
    count = 1 if isinstance(prompts, str) or prompts is None else len(prompts)
    batch = count * (asked["num_videos_per_prompt"] or 1)
    return ClipSize(asked["width"], asked["height"], asked["num_frames"], batch)
