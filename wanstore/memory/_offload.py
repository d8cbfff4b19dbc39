"""Components off a device and back: dropped when they are offloaded, read again when they are to work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch

from wanstore.building._dtypes import stays_float32
from wanstore.building._skeleton import fill_model, wanted_tensors
from wanstore.building._weight_files import check_fit, open_weights
from wanstore.building._weight_transfer import WeightTransfer, transfer_weights
from wanstore.interfaces import Quiet
from wanstore.memory._estimate import weight_bytes
from wanstore.memory._origin import Origin
from wanstore.transfer._from_memory import MemoryTransfer


class Offloader:
    """The components of a pipeline, each on the device, offloaded, or on its way back.

    An offloaded component has parameters without elements. They are on the device all the same, because a pipeline asks
    them where it works. It comes back from the folder that the pipeline was prepared from, which must hold the same
    files as then, or from host memory; what was streamed has no folder any more. The caller keeps two threads apart.
    """

    def __init__(self, models: Mapping[str, Any], origin: Origin) -> None:
        self._models = dict(models)
        self._origin = origin
        self._offloaded: set[str] = set()
        self._returning: dict[str, _Return] = {}
        self._host: dict[str, dict[str, torch.Tensor]] = {}
        self._wanted = {component: wanted_tensors(model) for component, model in self._models.items()}
        for component, model in self._models.items():
            if any(parameter.is_meta for parameter in model.parameters()):  # it had no space when the rest was loaded
                self._drop(component, self.device)

    @property
    def device(self) -> torch.device:
        """Where the pipeline works."""
        return _device_of(self._models["text_encoder"])

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of each component's weights when they are on the device."""
        return {
            component: weight_bytes(
                {name: math.prod(shape) for name, shape in wanted.items()},
                stays_float32(component, self._origin.dtypes),
            )
            for component, wanted in self._wanted.items()
        }

    @property
    def has_offloaded(self) -> bool:
        """Whether a component is offloaded."""
        return bool(self._offloaded)

    def offload_all_but(self, components: Iterable[str], *, from_host: bool = False) -> None:
        """Offload all others. With `from_host` their weights are kept in host memory from then on."""
        for component in set(self._models) - set(components) - self._offloaded:
            if (from_host or self._origin.streamed) and component not in self._host:
                self._host[component] = self._read_into_host(component)
            self._drop(component, _device_of(self._models[component]))

    def start_return(self, components: Iterable[str]) -> None:
        """Begin to bring back those of them that are offloaded."""
        for component in components:
            if component in self._offloaded and component not in self._returning:
                self._returning[component] = self._start(component)

    def bring_back(self, components: Iterable[str]) -> None:
        """Return when all of them are on the device.

        Raises what `activate` raises. Then they are offloaded as before, and can be brought back again.
        """
        components = list(components)
        try:
            self.start_return(components)
            for component in components:
                if component in self._offloaded:
                    fill_model(component, self._models[component], self._finish(component))
                    self._offloaded.discard(component)
        except BaseException:  # the others would hold their files and their memory until somebody asks again
            self.cancel_return()
            raise

    def cancel_return(self) -> None:
        """Stop bringing back whatever is on its way."""
        while self._returning:
            self._returning.popitem()[1].stack.close()

    def _drop(self, component: str, device: torch.device) -> None:
        for module in self._models[component].modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(0, dtype=parameter.dtype, device=device)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        self._offloaded.add(component)

    def _start(self, component: str) -> _Return:
        device = _device_of(self._models[component])
        with ExitStack() as stack:
            transfer: WeightTransfer | MemoryTransfer
            if component in self._host:
                transfer = stack.enter_context(MemoryTransfer(self._host[component], device))
            else:
                transfer = stack.enter_context(self._from_store(component, device))
            return _Return(transfer, stack.pop_all())

    @contextmanager
    def _from_store(self, component: str, device: torch.device | str) -> Iterator[WeightTransfer]:
        """Read through the page cache, so that the files are still there the next time."""
        origin = self._origin
        origin.check_same()
        with open_weights(origin.folder, [component]) as files:
            check_fit(origin.folder, component, files[component], self._wanted[component])
            with transfer_weights(files, device, origin.dtypes, Quiet(), component, through_cache=True) as transfer:
                yield transfer

    def _finish(self, component: str) -> dict[str, torch.Tensor]:
        """The tensors of a component that is on its way, once they are on the device."""
        returning = self._returning.pop(component)
        with returning.stack:
            if isinstance(returning.transfer, MemoryTransfer):
                return returning.transfer.tensors()
            tensors = returning.transfer.tensors()[component]
        self._origin.check_same()
        return tensors

    def _read_into_host(self, component: str) -> dict[str, torch.Tensor]:
        if self._origin.streamed:
            state = self._models[component].state_dict()
            return {name: state[name].to("cpu") for name in self._wanted[component]}
        with self._from_store(component, "cpu") as transfer:
            tensors = transfer.tensors()[component]
        self._origin.check_same()
        return tensors


@attrs.frozen
class _Return:
    """A component on its way back, and what ends that."""

    transfer: WeightTransfer | MemoryTransfer
    stack: ExitStack


def _device_of(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
