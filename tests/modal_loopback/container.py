"""One container: its process, its views of Volumes, and the calls that it makes to its worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import attrs
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from modal._serialization import deserialize_data_format
from modal_proto import api_pb2

from tests.modal_loopback.apps import App, new_id
from tests.modal_loopback.faults import Faults
from tests.modal_loopback.functions import Calls, Function
from tests.modal_loopback.views import OpenFilesError, View

_BACKGROUND_COMMIT_SECONDS = 0.5


@attrs.define(eq=False)
class Container:
    """One container. `task_id` changes when it is restored from a snapshot."""

    task_id: str
    app: App
    function: Function
    folder: Path
    views: dict[str, View] = attrs.field(factory=dict)
    process: asyncio.subprocess.Process | None = None
    checkpoint_id: str = ""
    taken: int = 0
    failure: Any = None

    @property
    def name(self) -> str:
        """The name of the function that it runs; a class's methods share `Class.*`."""
        return str(self.function.definition.function_name)

    @property
    def process_id(self) -> int:
        assert self.process is not None
        return self.process.pid

    def arguments(self) -> list[Any]:
        """The arguments of the calls that it is at."""
        mine = [held for held in self.function.running.values() if held.task_id == self.task_id]
        return [deserialize_data_format(held.item.args, held.item.data_format, None) for held in mine]

    def kill(self) -> None:
        """SIGKILL: no farewell, no last commit. What was not committed before is gone."""
        os.killpg(self.process_id, signal.SIGKILL)

    def at_work(self) -> int:
        """How many inputs it is at."""
        return sum(1 for held in self.function.running.values() if held.task_id == self.task_id)

    def free_slots(self) -> int:
        """How many more inputs it would take now."""
        definition = self.function.definition
        if definition.single_use_containers or definition.max_inputs == 1:
            return 0 if self.taken else 1
        return max(1, int(definition.max_concurrent_inputs)) - self.at_work()


class ContainerCalls:
    """What one container asks of its worker; everything else it asks of the control plane."""

    def __init__(self, container: Container, calls: Calls, faults: Faults, checkpoints: list[Checkpoint]) -> None:
        self._container = container
        self._calls = calls
        self._faults = faults
        self._checkpoints = checkpoints

    def ContainerHello(self, request: Any) -> Any:
        return Empty()

    def ContainerHeartbeat(self, request: Any) -> Any:
        return api_pb2.ContainerHeartbeatResponse()

    async def FunctionGetInputs(self, request: Any) -> Any:
        container = self._container
        given = await self._calls.take(container.function, container.task_id)
        if given is None:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        container.taken += 1
        kinds = (api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC, api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC)
        item = api_pb2.FunctionGetInputsItem(
            input_id=given.input_id,
            input=given.item,
            function_call_id=given.call_id,
            function_call_invocation_type=kinds[given.asynchronous],
            retry_count=given.runs - 1,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: Any) -> Any:
        for item in request.outputs:
            await self._calls.put(item)
        return Empty()

    def TaskResult(self, request: Any) -> Any:
        self._container.failure = request.result
        return Empty()

    async def ContainerCheckpoint(self, request: Any) -> Any:
        """Note what a snapshot could not keep, then let the very same process go on as a restored one."""
        container = self._container
        used = [name for view in container.views.values() for name in view.used_files(container.process_id)]
        self._checkpoints.append(Checkpoint(container.name, tuple(used)))
        container.task_id = new_id("ta")
        state = container.folder / "restore-state.json"
        draft = state.with_suffix(".draft")
        draft.write_text(json.dumps({"task_id": container.task_id}))
        # Not before the client has hung up: a restored one connects anew.
        asyncio.get_running_loop().call_later(0.2, draft.rename, state)
        return Empty()

    async def VolumeCommit(self, request: Any) -> Any:
        await _commit(self._container.views[request.volume_id], self._faults)
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def VolumeReload(self, request: Any) -> Any:
        container = self._container
        try:
            await asyncio.to_thread(container.views[request.volume_id].reload, container.process_id)
        except OpenFilesError as error:
            raise GRPCError(Status.FAILED_PRECONDITION, str(error)) from error
        return Empty()


@attrs.frozen
class Checkpoint:
    """A snapshot that was asked for, and the files on Volumes that were open or mapped at that moment."""

    function: str
    files_in_use: tuple[str, ...]


async def commit_now_and_then(container: Container, faults: Faults) -> None:
    """Modal's background commits, until this is cancelled."""
    while True:
        await asyncio.sleep(_BACKGROUND_COMMIT_SECONDS)
        for view in container.views.values():
            with contextlib.suppress(OSError):  # the next round sees what this one missed
                await _commit(view, faults)


async def _commit(view: View, faults: Faults) -> None:
    if not faults.loses("VolumeCommit"):
        await asyncio.to_thread(view.commit)
