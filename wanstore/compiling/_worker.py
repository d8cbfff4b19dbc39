"""Compiles blocks, or tries them out, in a process of its own: a worker module, see `wanstore._workers`.

Events: `made_for`, what the functions fit; `made`, `tried` and `failed` with a file, its preset, and the seconds, how
much clips differ, or the reason.

The parent imports it for its `Job`, so that what takes seconds to import is imported where it is used.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from wanstore._workers import Send, SentProgress
from wanstore.building._artifacts import file_name
from wanstore.choices import MemoryMode
from wanstore.errors import NotSupportedError
from wanstore.presets import Preset

if TYPE_CHECKING:
    import torch

    from wanstore.building._block_functions import BlockFunctions

LARGEST_DIFFERENCE = 0.02
"""Of a denoised latent, root mean square over root mean square. Wan 2.1's blocks differ by 0.001."""
_PROMPT = "A cat walks on the grass."


Task = Literal["describe", "make", "try"]


@attrs.frozen
class Job:
    """What to do, for which presets. Files are in `functions`. The others are as for `wanstore.compile_blocks`."""

    task: Task
    folder: str
    presets: tuple[Preset, ...]
    functions: str
    device: str | None = None
    dtype: dict[str, str] = attrs.field(factory=dict)
    memory: MemoryMode = "auto"
    attention: str | None = None


class _Captured(Exception):  # noqa: N818  it is no error
    """Ends a forward once what is looked for has been seen."""


def prepare() -> None:
    """Import torch's compiler, and what a load needs."""
    from wanstore.loading._load import import_libraries

    import_libraries()
    from wanstore.building._block_functions import import_compiler

    with suppress(Exception):  # using it says what is wrong
        import_compiler()


def do(job: Job, send: Send) -> None:
    """Do the job; see the module."""
    if job.task == "describe":
        _describe(job, send)
    else:
        _make_or_try(job, send)


def _describe(job: Job, send: Send) -> None:
    """Say what functions that are made here are for."""
    from wanstore.building._attention import NATIVE, check_known, use_backend
    from wanstore.building._attention_comparison import compare_backends
    from wanstore.building._block_functions import describe
    from wanstore.loading._load import load_folder
    from wanstore.transfer._device import pick_device

    attention = job.attention or NATIVE
    pipe = load_folder(Path(job.folder), weights="deferred", dtype=job.dtype)
    device = pick_device(job.device)
    if attention != "auto":
        check_known(attention)
    else:
        shape = max(job.presets, key=lambda preset: preset.clip.tokens)
        attention = next(iter(compare_backends(pipe.transformer, device, shape)), NATIVE)
    reason = use_backend(pipe, attention, device)
    used = NATIVE if reason else attention
    if reason:
        send("message", f"attention {used}, not {attention}: {reason}")
    send("made_for", describe(pipe.transformer, device, used))


def _make_or_try(job: Job, send: Send) -> None:
    """One preset's function after the other; one that fails stops no other."""
    from wanstore.building._block_functions import BlockFunctions, compile_block, why
    from wanstore.loading._load import load_folder

    pipe = load_folder(
        Path(job.folder), device=job.device, dtype=job.dtype, memory=job.memory, attention=job.attention,
        progress=SentProgress(send),
    )  # fmt: skip
    functions = BlockFunctions({})
    functions.attach(pipe.transformer)
    for preset in job.presets:
        path = Path(job.functions, file_name(preset.clip.shape))
        try:
            if job.task == "make":
                began = time.perf_counter()
                path.write_bytes(compile_block(pipe.transformer.blocks[0], _block_inputs(pipe, preset)))
                send("made", path.name, preset.name, time.perf_counter() - began)
            else:
                send("tried", path.name, preset.name, _difference(pipe, preset, functions, path.read_bytes()))
        except Exception as error:  # noqa: BLE001  torch's compiler fails in many ways
            send("failed", path.name, preset.name, why(error))


def _block_inputs(pipe: Any, preset: Preset) -> tuple[Any, ...]:
    """What the first block is given for such a clip. No block runs."""
    seen: list[tuple[Any, ...]] = []

    def capture(_: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs)
        raise _Captured

    hook = pipe.transformer.blocks[0].register_forward_pre_hook(capture)
    try:
        _denoise(pipe, preset)
    except _Captured:
        return seen[0]
    finally:
        hook.remove()
    raise NotSupportedError("The transformer never ran its first block", "Report it")


def _denoise(pipe: Any, preset: Preset) -> torch.Tensor:
    """The latent of such a clip after its only step."""
    import torch

    latent: torch.Tensor = pipe(
        _PROMPT, width=preset.width, height=preset.height, num_frames=preset.frames, num_inference_steps=1,
        guidance_scale=1.0, generator=torch.Generator("cpu").manual_seed(0), output_type="latent",
    ).frames  # fmt: skip
    return latent


def _difference(pipe: Any, preset: Preset, functions: BlockFunctions, data: bytes) -> float:
    """How much the function changes of a latent. Raises `NotSupportedError` where it is not to be trusted."""
    import torch

    from wanstore.building._block_functions import load_function

    pipe.set_progress_bar_config(disable=True)
    functions.add(preset.clip.shape, load_function(data, pipe.device))
    functions.runs = 0
    with functions.paused():
        eager = _denoise(pipe, preset)
    once, again = _denoise(pipe, preset), _denoise(pipe, preset)
    if functions.runs != 2 * len(pipe.transformer.blocks):
        raise NotSupportedError("The transformer's own blocks do not pass its guards", "Report it")
    if not torch.equal(once, again):
        raise NotSupportedError("Two runs of it differ", "Report it")
    change = (once - eager).float().square().mean().sqrt() / eager.float().square().mean().sqrt()
    difference = float(change)
    if not difference <= LARGEST_DIFFERENCE:  # NaN is not either
        raise NotSupportedError(f"It changes a latent by {difference:.2g} of its size", "Report it")
    return difference
