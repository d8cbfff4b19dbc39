"""What users call to get from a stored pipeline to one that is ready."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wanstore.api._addresses import place_of, presets_of, unsealed_folder
from wanstore.choices import (
    AttentionBackend,
    CompileMode,
    ComponentName,
    DtypeName,
    MemoryMode,
    PresetName,
    WeightsMode,
)
from wanstore.display._progress import shown
from wanstore.interfaces import Progress, WeightStore
from wanstore.recipes import model_in

if TYPE_CHECKING:
    import torch

    from wanstore.compiling import CompileReport
    from wanstore.loading._pipeline import WanPipeline
    from wanstore.memory import MemoryPlan
    from wanstore.presets import Preset


def load(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    device: str | torch.device | None = None,
    weights: WeightsMode = "resident",
    dtype: Mapping[ComponentName, DtypeName | torch.dtype] | None = None,
    attention: AttentionBackend | None = None,
    memory: MemoryMode | MemoryPlan = "auto",
    compile: CompileMode = "off",
    verify: bool = False,
    sealed: bool = True,
    cache: bool = True,
    progress: Progress | bool | None = None,
) -> WanPipeline:
    """Load a stored pipeline: ready, in float16, and bit for bit what diffusers builds.

    It is what `from_pretrained(folder, dtype=torch.float16)` gives: weights, buffers, dtypes, configs and ties are the
    same. The tokenizer differs on purpose: it encodes as the stored tokenizer.json says, where transformers 5's T5
    class rebuilds it and gives other ids for some prompts. No file mapping, open file, thread or socket outlives the
    call, but for a lock in the cache where weights of a remote store may be read again: on a GPU, unless `memory` is
    "resident".

    For a memory snapshot, call it with `device="cpu"`, and with `weights="deferred"` if the weights are to be read
    after the restore. CUDA is then neither used nor asked whether it is there. Call `activate` after the restore.

    Example:
        ```python
        pipe = wanstore.load("wan2.1-fp16", store="/data/models", device="cuda")
        pipe = wanstore.load("modal://anime-models/wan2.1-fp16")  # the same by one address
        frames = pipe("a red fox runs through deep snow", num_frames=49).frames[0]
        print(pipe.load_report)
        ```

    Args:
        address: the name of a pipeline in `store`, or, without one, an address such as `modal://volume/name` or
            `folder/name`.
        store: a store, or the path or URL of one. For a name alone it is by default the one that the variable
            `WANSTORE_STORE` names, or else the current folder.
        device: where the pipeline goes: "cuda" where there is one, else "cpu". None or "cpu" when deferred.
        weights: "resident" reads them now, "deferred" leaves them to `activate`.
        dtype: "float16" or "float32" (or torch's own) by component. `{"vae": "float32"}` widens the VAE's weights on
            the device, as `from_pretrained(dtype={"vae": torch.float32, "default": torch.float16})` does. Components
            that are not named compute in float16.
        attention: an attention backend of diffusers, such as "xformers", used on a GPU where it works. By default the
            one that the manifest records, if any.
        memory: how much of a GPU's memory a clip may take. "auto" chooses for each clip the quickest plan that fits:
            the text encoder, 80 % of the weights, may have to be offloaded while it does not work, and is read back
            from the folder. "offload" always offloads it. "resident" keeps everything on the device, and diffusers' own
            VAE decodes. A `MemoryPlan` says in detail what to do. No clip changes by it.
        compile: whether the transformer's blocks run compiled, which is quicker and changes clips by what no eye sees.
            "cached" takes the functions that `compile_blocks` has stored beside the pipeline, if they fit this GPU and
            these versions; clips of other sizes are made as with "off". With "on" those are compiled first, which takes
            many seconds, once for each size. Functions are code: they run what whoever can write into the store wants.
        verify: compare every file's SHA-256 with the manifest, not only its size.
        sealed: the folder must have a manifest and match it. With False any Wan 2.1 pipeline folder on this machine
            will do, whoever wrote it.
        cache: keep what an object store sends in the cache, and read it from there the next time. With False the
            weights go straight to the device, hashed in passing, and nothing is kept: for a machine that loads once.
        progress: receives the bytes checked and loaded, or True for bars.

    Returns:
        The pipeline, with a `load_report` of the phases' seconds and bytes.

    Raises:
        NotFoundError: there is no such pipeline, or no manifest in the folder.
        DamagedError: files are not what the manifest, the configs or their own headers say, or not readable.
        ChangedError: another pipeline took the folder's place during the load.
        DeviceError: the device has too little memory, or failed.
        NotSupportedError: another kind of pipeline, a device or attention backend that is not there, another component
            or dtype than those above, or arguments that exclude each other.
    """
    from wanstore.building._artifacts import functions_of
    from wanstore.loading._load import load_folder
    from wanstore.stores.cache._uses import released

    place, name = place_of(address, store) if sealed else (None, "")
    functions: list[Path] = []
    with shown(progress, place) as progress, ExitStack() as stack:
        stream = None
        if place:
            stream = None if cache else stack.enter_context(place.streamed(name))
            folder = stream.folder if stream else place.local_path(name)
            if compile != "off":
                functions = functions_of(place, name)
        else:
            folder = unsealed_folder(address, store)
        stack.enter_context(released(folder, *functions))
        pipe = load_folder(
            folder, device=device, weights=weights, dtype=dtype, attention=attention, memory=memory, compile=compile,
            functions=functions, verify=verify, sealed=sealed, progress=progress, stream=stream,
        )  # fmt: skip
        if weights == "resident":
            _hold_while_read_again(pipe)
    return pipe


def activate(
    pipe: WanPipeline, device: str | torch.device | None = None, *, progress: Progress | bool | None = None
) -> WanPipeline:
    """Bring a prepared pipeline onto its device, ready to generate: what to do after a memory snapshot was restored.

    Deferred weights are read from the folder that the pipeline was prepared from, which must still hold the same
    files. Weights that are in memory are moved. Python's, numpy's and torch's random generators get new seeds each
    time, because all clones of a snapshot would draw the same numbers. The attention backend is applied once the
    pipeline is on a GPU. What has been done already is not done again.

    Example:
        ```python
        pipe = wanstore.load("modal://anime-models/wan2.1-fp16", device="cpu", weights="deferred")  # before
        wanstore.activate(pipe, "cuda")  # after each restore
        ```

    Args:
        pipe: what `load` returned.
        device: "cuda" where there is one, else "cpu".
        progress: receives the bytes loaded, or True for bars.

    Returns:
        `pipe` itself, with an `activation_report`.

    Raises:
        ChangedError: the folder holds another pipeline than the one that was prepared.
        NotFoundError: the folder is gone.
        DamagedError, DeviceError: as for `load`. The pipeline is as it was: activate it again.
        NotSupportedError: the device is not there, or another loader made the pipeline.
    """
    from wanstore.loading._activate import activate_pipeline

    with shown(progress) as progress:
        activate_pipeline(pipe, device, progress=progress)
    _hold_while_read_again(pipe)
    return pipe


def compile_blocks(
    address: str | Path,
    *,
    store: WeightStore | str | Path | None = None,
    presets: Sequence[Preset | PresetName] | None = None,
    device: str | None = None,
    dtype: Mapping[ComponentName, DtypeName] | None = None,
    memory: MemoryMode = "auto",
    attention: AttentionBackend | Literal["auto"] | None = None,
    replace: bool = False,
    progress: Progress | bool | None = None,
) -> CompileReport:
    """Compile a stored pipeline's transformer blocks for clips of these sizes, and keep the functions in its store.

    Loads with `compile="cached"` use them, on a GPU of the same name with the same versions. Functions are made in one
    process and tried in another: one that crashes, or changes a latent by more than a fiftieth of its size, is not
    stored. What the store has already is not made again.

    Example:
        ```python
        print(wanstore.compile_blocks("wan2.1-fp16", store="/data/models", presets=["480p/3s"]).presets)
        pipe = wanstore.load("wan2.1-fp16", store="/data/models", compile="cached")
        ```

    Args:
        address: as for `load`.
        store: as for `load`. It is written to.
        presets: presets or their names, such as "480p/3s"; the four of production by default.
        device: as for `load`.
        dtype: as for `load`.
        memory: as for `load`, except that a plan cannot be given.
        attention: as for `load`, or "auto": the fastest on the largest preset's own shape.
        replace: make again what is there.
        progress: receives progress updates, or True for bars.

    Raises:
        NotFoundError: there is no such pipeline or preset.
        NotSupportedError: a device that is not there.
        DiskFullError, AccessError, BusyError: the store cannot be written.
    """
    from wanstore.compiling import make_functions

    presets_of(presets)  # a wrong name is told before anything is fetched
    place, name = place_of(address, store)
    with shown(progress, place) as progress:
        chosen = presets_of(presets, model_in(place.local_path(name)))
        return make_functions(
            place, name, chosen, device=device, dtype=dtype, memory=memory, attention=attention, replace=replace,
            progress=progress,
        )  # fmt: skip


def _hold_while_read_again(pipe: WanPipeline) -> None:
    """Keep the folder in the cache, if it is there, while a clip may have to read offloaded weights back from it.

    Nothing else is held: a memory snapshot keeps no open file.
    """
    from wanstore.stores.cache._uses import hold, release

    folder = pipe._origin.folder
    if pipe._origin.offloads_on(pipe.device.type):
        hold(folder)
        weakref.finalize(pipe, release, folder)
