"""From a ready pipeline and a prompt to a clip on the disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanstore._files import draft_of
from wanstore.interfaces import Progress, Quiet
from wanstore.presets import CACHES, FRAMES_PER_SECOND, Preset

if TYPE_CHECKING:
    import numpy
    from diffusers import WanPipeline


def generate(
    pipe: WanPipeline,
    prompt: str,
    preset: Preset,
    *,
    negative_prompt: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> numpy.ndarray[Any, Any]:
    """A clip as frames × height × width × 3, floats from 0 to 1. The same seed gives the same clip.

    Sets the scheduler's `flow_shift` to the preset's. Without a `negative_prompt` the preset's is used; "" is none.
    `progress` receives each denoising step.
    """
    import torch

    progress = progress or Quiet()
    if pipe.scheduler.config.flow_shift != preset.flow_shift:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=preset.flow_shift)
    task = f"generate {preset.name}"
    progress.start(task, preset.steps, "steps")

    guided_steps = math.ceil(preset.guidance_until * preset.steps - 1e-9)  # 0.55 × 20 is a little more than 11

    def on_step(running: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress.advance(task, 1)
        if step + 1 == guided_steps < preset.steps:
            running._guidance_scale = 1.0  # what diffusers' loop asks before each step
        return tensors

    bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        if preset.cache:
            pipe.transformer.enable_cache(_cache_config(preset.cache))
        output = pipe(
            prompt,
            negative_prompt=preset.negative_prompt if negative_prompt is None else negative_prompt,
            height=preset.height,
            width=preset.width,
            num_frames=preset.frames,
            num_inference_steps=preset.steps,
            guidance_scale=preset.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=on_step,
            output_type="np",
        )
    finally:
        pipe.set_progress_bar_config(**bar)
        if preset.cache:
            pipe.transformer.disable_cache()
    progress.finish(task)
    frames: numpy.ndarray[Any, Any] = output.frames[0]
    return frames


def _cache_config(cache: str) -> Any:
    import diffusers

    name, _, threshold = cache.partition("=")
    return getattr(diffusers, CACHES[name])(threshold=float(threshold))


def eight_bits(frames: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """Frames (as `generate` gives them) in 8-bit levels; NaN becomes 0. Needs the memory of a few more frames."""
    import numpy as np

    levels = np.empty(frames.shape, np.uint8)
    wide = np.result_type(frames.dtype, np.float32)  # float16 would round the product too
    for level, frame in zip(levels, frames, strict=True):
        level[:] = (np.nan_to_num(frame.astype(wide, copy=False)).clip(0, 1) * 255).round()
    return levels


def check_place(path: Path) -> None:
    """Check that a clip can be written to `path`, and make its folder. Raises what `write_clip` would."""
    with draft_of(path) as draft:
        draft.touch()


def write_clip(frames: numpy.ndarray[Any, Any], path: Path) -> None:
    """Write frames (as `generate` gives them) as an H.264 mp4 at 16 frames a second.

    An existing file is replaced by a whole clip, or stays. Raises `WanstoreError` if the operating system refuses.
    """
    import av

    pixels = eight_bits(frames)
    with draft_of(path) as draft:
        with av.open(str(draft), "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        draft.replace(path.resolve())
