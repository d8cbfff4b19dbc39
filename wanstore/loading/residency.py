"""Which components of a pipeline are on its device: released when they make room, back when they are to work."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch

from wanstore.building._skeleton import fill_model, wanted_tensors
from wanstore.building._weight_files import check_fit, open_weights
from wanstore.building._weight_transfer import WeightTransfer, stays_float32, transfer_weights
from wanstore.components import COMPONENTS
from wanstore.interfaces import Quiet
from wanstore.loading.memory import weight_bytes
from wanstore.transfer._from_memory import MemoryTransfer

if TYPE_CHECKING:
    from wanstore.loading.activation import Origin


class Residency:
    """The components of a pipeline, each on the device, away, or on its way back.

    What is away has parameters without elements, on the device all the same: it is where the pipeline works. It comes
    back from the folder that the pipeline was prepared from, which must hold the same as then, or from host memory.
    Whoever uses it holds `lock`.
    """

    def __init__(self, pipe: Any, origin: Origin) -> None:
        self.lock = threading.RLock()
        self._models = {component: getattr(pipe, component) for component in COMPONENTS}
        self._origin = origin
        self._away: set[str] = set()
        self._coming: dict[str, _Return] = {}
        self._host: dict[str, dict[str, torch.Tensor]] = {}
        self._wanted = {component: wanted_tensors(model) for component, model in self._models.items()}
        for component, model in self._models.items():
            if any(parameter.is_meta for parameter in model.parameters()):  # it found no room when it was loaded
                self._put_away(component, pipe.device)

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes of each component's weights on the device, there or not."""
        return {
            component: weight_bytes(
                {name: math.prod(shape) for name, shape in wanted.items()},
                stays_float32(component, self._origin.dtypes),
            )
            for component, wanted in self._wanted.items()
        }

    @property
    def lacks_some(self) -> bool:
        """Whether a component is away."""
        return bool(self._away)

    def keep_only(self, components: Iterable[str], *, from_host: bool = False) -> None:
        """Release all others. With `from_host` their weights are kept in host memory from then on."""
        for component in set(self._models) - set(components) - self._away:
            self._release(component, from_host)

    def begin(self, components: Iterable[str]) -> None:
        """Begin to bring back those of them that are away."""
        for component in components:
            if component in self._away and component not in self._coming:
                self._coming[component] = self._return(component)

    def need(self, components: Iterable[str]) -> None:
        """Return when all of them are there.

        Raises what `activate` raises. Then they are away as before, and can be asked for again.
        """
        components = list(components)
        try:
            self.begin(components)
            for component in components:
                if component in self._away:
                    fill_model(component, self._models[component], self._finish(component))
                    self._away.discard(component)
        except BaseException:  # the others would hold their files and their memory until somebody asks again
            self.stop()
            raise

    def stop(self) -> None:
        """Drop what is on its way."""
        while self._coming:
            self._coming.popitem()[1].stack.close()

    def _release(self, component: str, from_host: bool) -> None:
        if from_host and component not in self._host:
            self._host[component] = self._read_into_host(component)
        self._put_away(component, next(self._models[component].parameters()).device)

    def _put_away(self, component: str, device: torch.device) -> None:
        for module in self._models[component].modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(0, dtype=parameter.dtype, device=device)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        self._away.add(component)

    def _return(self, component: str) -> _Return:
        model = self._models[component]
        device = next(model.parameters()).device
        with ExitStack() as stack:
            coming: WeightTransfer | MemoryTransfer
            if component in self._host:
                coming = stack.enter_context(MemoryTransfer(self._host[component], device))
            else:
                coming = stack.enter_context(self._stream(component, device))
            return _Return(coming, stack.pop_all())

    @contextmanager
    def _stream(self, component: str, device: torch.device | str) -> Iterator[WeightTransfer]:
        """From the store, by way of the page cache, so that it is still there the next time."""
        origin = self._origin
        origin.check_same()
        with open_weights(origin.folder, [component]) as files:
            check_fit(origin.folder, component, files[component], self._wanted[component])
            with transfer_weights(files, device, origin.dtypes, Quiet(), component, through_cache=True) as streamed:
                yield streamed

    def _finish(self, component: str) -> dict[str, torch.Tensor]:
        """The tensors that are on their way, once they are there."""
        coming = self._coming.pop(component)
        with coming.stack:
            if isinstance(coming.moving, MemoryTransfer):
                return coming.moving.tensors()
            tensors = coming.moving.tensors()[component]
        self._origin.check_same()
        return tensors

    def _read_into_host(self, component: str) -> dict[str, torch.Tensor]:
        with self._stream(component, "cpu") as streamed:
            tensors = streamed.tensors()[component]
        self._origin.check_same()
        return tensors


@attrs.frozen
class _Return:
    """A component on its way back, and what ends that."""

    moving: WeightTransfer | MemoryTransfer
    stack: ExitStack
