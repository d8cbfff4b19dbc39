"""The second half of a load: what a process does after its memory snapshot was restored."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from wanstore.building._attention import NATIVE, use_backend
from wanstore.building._check import check_sealed
from wanstore.building._skeleton import fill_model, wanted_tensors
from wanstore.building._weight_files import check_fit, open_weights
from wanstore.building._weight_transfer import WeightTransfer, transfer_weights
from wanstore.components import COMPONENTS
from wanstore.errors import ChangedError, DeviceMemoryError, NotFoundError, NotSupportedError
from wanstore.interfaces import Progress
from wanstore.loading.memory import Memory
from wanstore.loading.report import Attention, PhaseClock
from wanstore.loading.staged import stage
from wanstore.manifest import Manifest
from wanstore.transfer._device import pick_device
from wanstore.transfer._from_memory import MemoryTransfer

_ACTIVATING = threading.Lock()


@attrs.frozen
class Origin:
    """What a pipeline was prepared from; kept on it as `wanstore_origin`. An unsealed folder has no manifest.

    `dtypes` are as `check_dtypes` gives them: deferred weights become what was asked for when it was prepared.
    `memory` is how much of a device it may take.
    """

    folder: Path
    manifest: Manifest | None
    asked_attention: str | None
    dtypes: Mapping[str, str]
    memory: Memory

    @property
    def attention(self) -> str | None:
        """The attention backend to use on a GPU: the one asked for, or the one that the manifest notes."""
        noted = self.manifest.notes.get("attention") if self.manifest else None
        return self.asked_attention or noted

    def check_same(self) -> None:
        """Raise `ChangedError`, or `NotFoundError`, unless the folder still holds what it held."""
        if self.manifest is None:
            return
        again = "Load the pipeline anew, and make the snapshot anew if there was one"
        if not self.folder.is_dir():
            raise NotFoundError(f"The folder {self.folder}, which this pipeline was prepared from, is gone", again)
        if check_sealed(self.folder, verify=False).digest != self.manifest.digest:
            raise ChangedError(f"{self.folder} holds another pipeline than this one was prepared from", again)


def activate(pipe: Any, device: str | torch.device | None, progress: Progress) -> None:
    """See `wanstore.loading.activate`."""
    origin = getattr(pipe, "wanstore_origin", None)
    if not isinstance(origin, Origin):
        raise NotSupportedError("This pipeline was not loaded by wanstore", "Load it with wanstore.load")
    with _ACTIVATING:
        clock = PhaseClock()
        reseed()
        models = {component: getattr(pipe, component) for component in COMPONENTS}
        if any(parameter.is_meta for model in models.values() for parameter in model.parameters()):
            with clock.phase("check"):
                origin.check_same()
                opened = open_weights(origin.folder)
            with (
                opened as files,
                transfer_weights(files, device, origin.dtypes, progress, origin.folder.name) as streamed,
            ):
                for component, model in models.items():
                    check_fit(origin.folder, component, files[component], wanted_tensors(model))
                fill(models, origin, streamed, clock)
        else:
            with clock.phase("device"):
                ready = pick_device(device)
            if pipe.device != ready:
                _move(models, ready, clock)
        attention = make_ready(pipe, clock)
        pipe.activation_report = clock.report(str(origin.folder), str(pipe.device), attention)
        if attention:
            pipe.load_report = attrs.evolve(pipe.load_report, attention=attention)


def fill(models: Mapping[str, Any], origin: Origin, streamed: WeightTransfer, clock: PhaseClock) -> None:
    """Wait for the weights and give them to the models, which have none; on an error they stay as they were.

    Where the device has no room for all, and components may be streamed, it is the text encoder alone, which works
    first: the others stay without weights until `stage` has the pipeline bring them.
    """
    try:
        tensors = _wait(streamed, clock)
    except DeviceMemoryError:
        if not _is_staged(origin, streamed.transfer.device):
            raise
        with (
            open_weights(origin.folder, ["text_encoder"]) as files,
            transfer_weights(files, streamed.transfer.device, origin.dtypes, streamed.progress, streamed.task) as part,
        ):
            tensors = _wait(part, clock)
    with clock.phase("assign"):
        origin.check_same()  # it was not swapped in mid-load either
        for component, model in models.items():
            if tensors[component]:
                fill_model(component, model, tensors[component])


def _wait(transfer: WeightTransfer, clock: PhaseClock) -> dict[str, dict[str, torch.Tensor]]:
    """Each component's tensors, once all are there; the wait and the transfer are in the clock from then on."""
    with clock.waiting():
        tensors = transfer.tensors()
    clock.transferred(transfer.transfer.began, transfer.transfer.record)
    return tensors


def make_ready(pipe: Any, clock: PhaseClock) -> Attention | None:
    """What is left once a pipeline is on its device: its attention backend, and how it shares out the memory."""
    with clock.phase("attention"):
        attention = _apply_once(pipe, pipe.device)
    if _is_staged(pipe.wanstore_origin, pipe.device):
        stage(pipe)
    return attention


def reseed() -> None:
    """Give the process's random generators new seeds: all clones of one snapshot would draw the same numbers."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(os.urandom(4), "little"))
    torch.seed()


def _is_staged(origin: Origin, device: torch.device) -> bool:
    """Whether components make room for one another: on a CPU only if that was asked for."""
    return origin.memory != "resident" and (origin.memory != "auto" or device.type == "cuda")


def _apply_once(pipe: Any, device: torch.device) -> Attention | None:
    """Apply the pipeline's attention backend on `device`; what came of it, None if there is nothing to do."""
    backend = pipe.wanstore_origin.attention
    if backend is None or getattr(pipe, "wanstore_attention_on", None) == device:
        return None
    pipe.wanstore_attention_on = device
    return apply_attention(pipe, backend)


def apply_attention(pipe: Any, backend: str) -> Attention:
    """Have the pipeline use `backend` where it works on its device, else the native one; which it is, and why."""
    reason = use_backend(pipe, backend, pipe.device)
    return Attention(backend, NATIVE if reason else backend, reason)


def _move(models: Mapping[str, Any], device: torch.device, clock: PhaseClock) -> None:
    """Move parameters and buffers; from memory to a GPU by whole buffers, as quickly as from files."""
    parameters = [parameter for model in models.values() for parameter in model.parameters()]
    if device.type == "cuda" and all(parameter.device.type == "cpu" for parameter in parameters):
        tensors = {str(number): parameter.data for number, parameter in enumerate(parameters)}
        with MemoryTransfer(tensors, device) as move:
            with clock.waiting():
                moved = move.tensors()
            clock.transferred(move.transfer.began, move.transfer.record)
            for number, tensor in moved.items():
                parameters[int(number)].data = tensor
    with clock.phase("pipeline"):
        for model in models.values():
            model.to(device)
