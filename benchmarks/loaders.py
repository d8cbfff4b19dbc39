"""The ways to bring weights to a device, each called as its own documentation says. Run by loading.py.

    python benchmarks/loaders.py measure < JOB    # a JSON object, see `Job`; the answer is one on the last line
    python benchmarks/loaders.py pack < JOB       # convert the files to FlashPack's format, in the folder named

A process makes one load. Its imports, and the device's own start, come before the time is taken.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
from page_cache import drop, share_cached

from wanstore._formats._safetensors import Tensor, read_header

TIED = "encoder.embed_tokens.weight"
"""UMT5's second name for `shared.weight`: files hold it once."""


@attrs.frozen
class Job:
    """`tiny` is a pipeline of a few MB; `files` are the weight files, or what they were converted to."""

    way: str
    folder: str
    tiny: str
    files: list[str]
    device: str = "cuda"
    cold: bool = False
    sums: dict[str, int] = attrs.Factory(dict)

    @property
    def place(self) -> str:
        """The device by its number, which some libraries insist on."""
        return "cuda:0" if self.device == "cuda" else self.device

    def as_json(self) -> str:
        return json.dumps(attrs.asdict(self))


Load = Callable[[], Any]
"""Gives tensors by name, or a pipeline."""


def wanstore(job: Job) -> Load:
    from wanstore.loading._load import load_folder as load

    load(Path(job.tiny), device="cpu")  # for its imports
    return lambda: load(Path(job.folder), device=job.device)


def from_pretrained(job: Job) -> Load:
    import torch
    from diffusers import WanPipeline

    WanPipeline.from_pretrained(job.tiny, dtype=torch.float16)
    return lambda: WanPipeline.from_pretrained(job.folder, dtype=torch.float16).to(job.device)


def safetensors(job: Job) -> Load:
    from safetensors.torch import load_file

    def load() -> Any:
        return {name: tensor for file in job.files for name, tensor in load_file(file, device=job.place).items()}

    return load


def safetensors_prefetch(job: Job) -> Load:
    from safetensors import safe_open

    if not hasattr(safe_open, "prefetch"):
        raise ImportError("this safetensors has no prefetch: name a folder with 0.9 by --safetensors-next")

    def load() -> Any:
        files = [safe_open(file, framework="pt", device=job.place) for file in job.files]
        loaders = [file.prefetch() for file in files]
        return {name: tensor for loader in loaders for name, tensor in loader}

    return load


def fastsafetensors(job: Job) -> Load:
    from fastsafetensors import SafeTensorsFileLoader

    def load() -> Any:
        loader = SafeTensorsFileLoader(None, job.place, nogds=True)
        loader.add_filenames({0: job.files})
        files = loader.copy_files_to_device()
        return {name: files.get_tensor(name) for name in loader.get_keys()}

    return load


def fastsafetensors_buffered(job: Job) -> Load:
    os.environ["FASTSAFETENSORS_ODIRECT"] = "0"
    return fastsafetensors(job)


def runai_model_streamer(job: Job) -> Load:
    from runai_model_streamer import SafetensorsStreamer

    def load() -> Any:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(job.files, device=job.place)
            return {name: tensor.to(job.place) for name, tensor in streamer.get_tensors()}

    return load


def instanttensor(job: Job) -> Load:
    return _instanttensor(job)


def instanttensor_buffered(job: Job) -> Load:
    from instanttensor import BackendPolicy

    return _instanttensor(job, backend=BackendPolicy.BUFFERED)


def _instanttensor(job: Job, **options: Any) -> Load:
    import instanttensor

    def load() -> Any:
        with instanttensor.safe_open(list(job.files), framework="pt", device=job.place, **options) as files:
            return dict(files.tensors())

    return load


def flashpack(job: Job) -> Load:
    from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file

    def load() -> Any:
        packs = (read_flashpack_file(file, device=job.place) for file in job.files)
        return {name: tensor for pack in packs for name, tensor in iterate_from_flash_tensor(*pack)}

    return load


FILE_WAYS: dict[str, Callable[[Job], Load]] = {
    "InstantTensor, buffered": instanttensor_buffered,
    "fastsafetensors, buffered": fastsafetensors_buffered,
    "safetensors 0.9 prefetch": safetensors_prefetch,
    "FlashPack": flashpack,
    "safetensors load_file": safetensors,
    "runai-model-streamer": runai_model_streamer,
    "fastsafetensors, default": fastsafetensors,
    "InstantTensor, default": instanttensor,
}
PIPELINE_WAYS: dict[str, Callable[[Job], Load]] = {"wanstore.load": wanstore, "from_pretrained": from_pretrained}
PACKED = "FlashPack"
"""The way that has a file format of its own."""


def measure(job: Job) -> dict[str, Any]:
    """One timed load: `began` and `ended` by `time.monotonic`, which processes share."""
    load = (FILE_WAYS | PIPELINE_WAYS)[job.way](job)
    import torch

    on_gpu = job.device == "cuda"
    if on_gpu:
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        free_before = torch.cuda.mem_get_info()[0]
    if job.cold:
        drop(job.files)
    found = {"cached": share_cached(job.files), "began": time.monotonic()}
    loaded = load()
    if on_gpu:
        torch.cuda.synchronize()
    found["ended"] = time.monotonic()
    if on_gpu:
        found["device_bytes"] = free_before - torch.cuda.mem_get_info()[0]
    if report := getattr(loaded, "load_report", None):
        found["report"] = attrs.asdict(report)
    found["wrong"] = _wrong(loaded if isinstance(loaded, dict) else _tensors_of(loaded), job)
    return found


def _tensors_of(pipe: Any) -> dict[str, Any]:
    models = (pipe.transformer, pipe.text_encoder, pipe.vae)
    return {name: tensor for model in models for name, tensor in model.state_dict().items() if name != TIED}


def _wrong(tensors: dict[str, Any], job: Job) -> str:
    """What is wrong with the tensors, by the sums of their bits; nothing when all is right."""
    import torch

    if tensors.keys() != job.sums.keys():
        return f"other tensors, such as {min(tensors.keys() ^ job.sums.keys())}"
    if strays := [name for name, tensor in tensors.items() if tensor.device.type != job.device]:
        return f"{len(strays)} tensors on another device, such as {strays[0]}"
    # Those that were widened are narrowed again, without a loss.
    sums = [tensor.half().view(torch.int16).sum(dtype=torch.int64) for tensor in tensors.values()]
    found = dict(zip(tensors, torch.stack(sums).tolist(), strict=True))
    bad = [name for name, value in found.items() if value != job.sums[name]]
    return f"{len(bad)} tensors with other bits, such as {bad[0]}" if bad else ""


def sums_of(files: list[str]) -> dict[str, int]:
    """Of every tensor of float16 files, the sum of its bits taken as 16-bit integers: what loads are checked by."""
    import numpy as np

    def add_up(place: tuple[str, Tensor]) -> int:
        file, tensor = place
        if tensor.dtype != "F16":
            raise ValueError(f"{file}: {tensor.name} is {tensor.dtype}, not F16")
        return int(np.memmap(file, "<i2", "r", tensor.start, tensor.elements).sum(dtype=np.int64))

    places = [(file, tensor) for file in files for tensor in _header(Path(file))]
    names = [tensor.name for _, tensor in places]
    if len(set(names)) != len(names):
        raise ValueError("two components share a tensor's name: a loader of many files would drop one")
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(add_up, places), strict=True))


def _header(path: Path) -> tuple[Tensor, ...]:
    with path.open("rb") as file:

        def head(count: int) -> bytes:
            file.seek(0)
            return file.read(count)

        return read_header(head, path.stat().st_size)


def pack(job: Job) -> dict[str, Any]:
    """Convert the files to FlashPack's format, in `job.folder`."""
    from flashpack.serialization import pack_to_file
    from safetensors.torch import load_file

    packed = []
    for file in job.files:
        packed.append(str(Path(job.folder, f"{Path(file).parent.name}-{Path(file).stem}.flashpack")))
        pack_to_file(load_file(file), packed[-1], None)
    return {"files": packed}


if __name__ == "__main__":
    steps = {"measure": measure, "pack": pack}
    print("\n" + json.dumps(steps[sys.argv[1]](Job(**json.load(sys.stdin)))))
