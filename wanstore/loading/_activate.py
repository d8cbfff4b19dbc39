"""The second half of a load: what a process does after its memory snapshot was restored."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import attrs
import torch

from wanstore.building._artifacts import read_functions, spelled
from wanstore.building._attention import NATIVE, use_backend
from wanstore.building._block_functions import BlockFunctions, describe, is_patched, load_function, why
from wanstore.building._check import told_if_changed
from wanstore.building._skeleton import fill_model, wanted_tensors
from wanstore.building._weight_files import check_fit, open_weights
from wanstore.building._weight_transfer import WeightTransfer, transfer_weights
from wanstore.components import COMPONENTS
from wanstore.errors import DeviceMemoryError, NotSupportedError, WanstoreError
from wanstore.interfaces import Progress, Quiet
from wanstore.lean_imports import collection_paused, quiet_libraries, resolve_imported
from wanstore.loading._clock import PhaseClock
from wanstore.loading._pipeline import WanPipeline
from wanstore.loading._report import Attention, Compiled, Ready
from wanstore.memory._origin import Origin
from wanstore.transfer._device import pick_device
from wanstore.transfer._from_memory import MemoryTransfer

_LOG = logging.getLogger("wanstore")
_ACTIVATING = threading.Lock()


def activate_pipeline(
    pipe: WanPipeline, device: str | torch.device | None = None, *, progress: Progress | None = None
) -> WanPipeline:
    """See `wanstore.activate`."""
    if not isinstance(getattr(pipe, "_origin", None), Origin):
        raise NotSupportedError("This pipeline was not loaded by wanstore", "Load it with wanstore.load")
    with collection_paused(), quiet_libraries(), _ACTIVATING:
        _activate(pipe, device, progress or Quiet())
        resolve_imported()
    return pipe


def _activate(pipe: WanPipeline, device: str | torch.device | None, progress: Progress) -> None:
    origin, clock = pipe._origin, PhaseClock()
    reseed()
    models = {component: getattr(pipe, component) for component in COMPONENTS}
    if any(parameter.is_meta for model in models.values() for parameter in model.parameters()):
        with told_if_changed(origin.folder, origin.manifest), ExitStack() as stack:
            with clock.phase("check"):
                origin.check_same()
                files = stack.enter_context(open_weights(origin.folder))
            transfer = stack.enter_context(transfer_weights(files, device, origin.dtypes, progress, origin.folder.name))
            for component, model in models.items():
                check_fit(origin.folder, component, files[component], wanted_tensors(model))
            fill(models, origin, transfer, clock)
    else:
        with clock.phase("device"):
            ready = pick_device(device)
        if pipe.device != ready:
            _move(models, ready, clock)
    done = make_ready(pipe, clock)
    pipe._deferred = False
    pipe.activation_report = report = clock.report(str(origin.folder), str(pipe.device), done)
    told = "%s: activated on %s in %.2f s, bound by %s"
    _LOG.info(told, origin.folder.name, report.device, report.seconds, report.bound_by)
    pipe.load_report = attrs.evolve(
        pipe.load_report,
        attention=done.attention or pipe.load_report.attention,
        compiled=done.compiled or pipe.load_report.compiled,
    )


def fill(models: Mapping[str, Any], origin: Origin, transfer: WeightTransfer, clock: PhaseClock) -> None:
    """Wait for the weights and give them to the models, which have none; on an error they stay as they were.

    Where the device has no space for all, and components may be offloaded, the text encoder alone gets its weights,
    since it works first. The others stay without until their phases.
    """
    try:
        with clock.waiting(transfer.transfer):
            tensors = transfer.tensors()
    except DeviceMemoryError:
        if origin.streamed or not origin.offloads_on(transfer.transfer.device.type):
            raise
        with (
            open_weights(origin.folder, ["text_encoder"]) as files,
            transfer_weights(files, transfer.transfer.device, origin.dtypes, transfer.progress, transfer.task) as part,
            clock.waiting(part.transfer),
        ):
            tensors = part.tensors()
    with clock.phase("assign"):
        origin.check_same()  # it was not swapped in mid-load either
        for component, model in models.items():
            if tensors[component]:
                fill_model(component, model, tensors[component])


def make_ready(pipe: WanPipeline, clock: PhaseClock) -> Ready:
    """What is left once a pipeline is on its device: attention backend, compiled blocks, the shares of memory."""
    origin, device = pipe._origin, pipe.device
    ready = Ready()
    if pipe._ready_on != device:
        with clock.phase("attention"):
            # Compiled blocks are made for one backend by its name, so that they have one.
            backend = origin.attention or (NATIVE if origin.compiles else None)
            attention = apply_attention(pipe, backend) if backend else None
        compiled = None
        if origin.compile != "off":
            with clock.phase("compile"):
                compiled = apply_functions(pipe, attention.used if attention else NATIVE)
            if not compiled.used:
                _LOG.warning("%s: %s", origin.folder.name, compiled)
        pipe._ready_on = device
        ready = Ready(attention if origin.attention else None, compiled)
    if origin.offloads_on(device.type):
        pipe._offload_by_plan()
    return ready


def reseed() -> None:
    """Give the process's random generators new seeds: all clones of one snapshot would draw the same numbers."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(os.urandom(4), "little"))
    torch.seed()


def apply_attention(pipe: Any, backend: str) -> Attention:
    """Have the pipeline use `backend` where it works on its device, else the native one; which it is, and why."""
    reason = use_backend(pipe, backend, pipe.device)
    attention = Attention(backend, NATIVE if reason else backend, reason)
    if reason and pipe.device.type == "cuda":  # elsewhere there is no other than the native one
        _LOG.warning("%s", attention)
    return attention


def apply_functions(pipe: Any, attention: str) -> Compiled:
    """Have the transformer's blocks run by the functions that fit, if any; which, and why not if not.

    Nothing that is wrong about functions is an error: the pipeline runs without them.
    """
    origin, functions, reason = pipe._origin, {}, ""
    if pipe._functions:
        pipe._functions.detach(pipe.transformer)
        pipe._functions = None
    if is_patched(pipe.transformer.blocks[0]):
        return Compiled(origin.compile, reason="code of torch or diffusers that blocks run was patched")
    try:
        stored = read_functions(origin.functions, describe(pipe.transformer, pipe.device, attention))
        functions = {shape: load_function(data, pipe.device) for shape, data in stored.items()}
    except WanstoreError as error:
        reason = error.what
    except Exception as error:  # noqa: BLE001  torch's compiler fails in many ways
        reason = why(error)
    compiles = origin.compile == "on"
    if functions or compiles:
        pipe._functions = BlockFunctions(functions, compiles=compiles)
        pipe._functions.attach(pipe.transformer)
    return Compiled(origin.compile, tuple(map(spelled, sorted(functions))), compiles, reason)


def _move(models: Mapping[str, Any], device: torch.device, clock: PhaseClock) -> None:
    """Move parameters and buffers; from memory to a GPU by whole buffers, as quickly as from files."""
    parameters = [parameter for model in models.values() for parameter in model.parameters()]
    if device.type == "cuda" and all(parameter.device.type == "cpu" for parameter in parameters):
        tensors = {str(number): parameter.data for number, parameter in enumerate(parameters)}
        with MemoryTransfer(tensors, device) as move:
            with clock.waiting(move.transfer):
                moved = move.tensors()
            for number, tensor in moved.items():
                parameters[int(number)].data = tensor
    with clock.phase("pipeline"):
        for model in models.values():
            model.to(device)
