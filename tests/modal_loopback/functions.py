"""Functions, the calls made to them, and the inputs that wait, run, fail and are tried again."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from modal_proto import api_pb2

from tests.modal_loopback.faults import Faults

_LONGEST_RETRY_DELAY_SECONDS = 0.1
"""A function's own delays between retries are cut to this: tests do not wait for minutes."""


@attrs.define(eq=False)
class Input:
    """One input of a call: `runs` counts how often it was handed out, `task_id` names who has it."""

    input_id: str
    call_id: str
    index: int
    item: Any
    function_id: str
    asynchronous: bool
    runs: int = 0
    task_id: str = ""


@attrs.define(eq=False)
class Call:
    """A call of a function with one input or many, and the outputs that came so far."""

    call_id: str
    function_id: str
    asynchronous: bool
    inputs: list[Input] = attrs.field(factory=list)
    outputs: list[Any] = attrs.field(factory=list)


@attrs.define(eq=False)
class Function:
    """A function's definition, its waiting inputs, and the inputs that containers are at work on."""

    function_id: str
    app_id: str
    definition: Any
    waiting: deque[Input] = attrs.field(factory=deque)
    running: dict[str, Input] = attrs.field(factory=dict)
    closed: bool = False
    web_url: str = ""

    @property
    def retries(self) -> int:
        return int(self.definition.retry_policy.retries)

    def data(self) -> Any:
        """The definition in the form that clients look up."""
        ranked = api_pb2.FunctionData.RankedFunction(function=self.definition)
        return api_pb2.FunctionData(
            function_name=self.definition.function_name,
            webhook_config=self.definition.webhook_config,
            web_url=self.web_url,
            ranked_functions=[ranked],
        )

    def handle(self) -> Any:
        """What a client needs to know of it."""
        definition = self.definition
        methods = {
            name: api_pb2.FunctionHandleMetadata(
                function_name=method.function_name,
                function_type=method.function_type,
                is_method=True,
                use_method_name=name,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
                app_id=self.app_id,
            )
            for name, method in definition.method_definitions.items()
        }
        return api_pb2.FunctionHandleMetadata(
            function_name=definition.function_name,
            function_type=definition.function_type,
            web_url=self.web_url,
            definition_id=f"de-{self.function_id[3:]}",
            class_parameter_info=definition.class_parameter_info,
            method_handle_metadata=methods,
            function_schema=definition.function_schema,
            supported_input_formats=definition.supported_input_formats,
            supported_output_formats=definition.supported_output_formats,
            app_id=self.app_id,
        )


class Calls:
    """All functions and calls. `start` is asked for a container whenever an input has none to wait for, `kill` to end
    one that is at an input beyond its function's timeout."""

    def __init__(self, faults: Faults) -> None:
        self.functions: dict[str, Function] = {}
        self.start: Callable[[Function], Awaitable[None]] | None = None
        self.kill: Callable[[str], None] = lambda task_id: None
        self._faults = faults
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, Input] = {}
        self._changed = asyncio.Event()

    def define(self, function_id: str, app_id: str, definition: Any) -> Function:
        """Make a function, or give one that is there a new definition."""
        made = api_pb2.Function()
        made.CopyFrom(definition)
        # The server's part: a container snapshots itself only if it is told that this function does.
        made.is_checkpointing_function = made.checkpointing_enabled
        function = self.functions.setdefault(function_id, Function(function_id, app_id, made))
        function.definition = made
        return function

    def unfinished(self, app_id: str) -> bool:
        return any(f.waiting or f.running for f in self.functions.values() if f.app_id == app_id)

    def close(self, app_id: str) -> None:
        """Give the app's containers no more inputs: an idle one ends."""
        for function in self.functions.values():
            if function.app_id == app_id:
                function.closed = True
        self.tell()

    def open(self, function_id: str, *, asynchronous: bool = False) -> Call:
        """A call that has no input yet."""
        call = Call(f"fc-{uuid.uuid4().hex[:22]}", function_id, asynchronous)
        self._calls[call.call_id] = call
        return call

    async def finish(self, call: Call) -> None:
        """Wait until each of the call's inputs has its output."""
        while len(call.outputs) < len(call.inputs):
            await self._change(None)

    async def FunctionMap(self, request: Any) -> Any:
        asynchronous = request.function_call_invocation_type == api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        call = self.open(request.function_id, asynchronous=asynchronous)
        return api_pb2.FunctionMapResponse(
            function_call_id=call.call_id,
            pipelined_inputs=await self.add(call, request.pipelined_inputs),
            retry_policy=self.functions[request.function_id].definition.retry_policy,
            sync_client_retries_enabled=False,
            max_inputs_outstanding=1000,
        )

    async def FunctionPutInputs(self, request: Any) -> Any:
        added = await self.add(self._call(request.function_call_id), request.inputs)
        return api_pb2.FunctionPutInputsResponse(inputs=added)

    async def FunctionGetOutputs(self, request: Any) -> Any:
        call = self._call(request.function_call_id)
        if self._faults.expires(call.call_id):
            await asyncio.sleep(request.timeout)  # the client asks again at once if it was told to wait for ever
            return api_pb2.FunctionGetOutputsResponse(last_entry_id="0-0")
        seen = int((request.last_entry_id or "0").partition("-")[0])
        deadline = asyncio.get_running_loop().time() + request.timeout
        while len(call.outputs) <= seen and asyncio.get_running_loop().time() < deadline:
            await self._change(deadline)
        return api_pb2.FunctionGetOutputsResponse(
            outputs=call.outputs[seen:],
            last_entry_id=f"{len(call.outputs)}-0",
            num_unfinished_inputs=len(call.inputs) - len(call.outputs),
        )

    def FunctionGetCurrentStats(self, request: Any) -> Any:
        function = self.functions[request.function_id]
        return api_pb2.FunctionStats(
            backlog=len(function.waiting),
            num_total_tasks=max(1, len({i.task_id for i in function.running.values()})),
            num_running_inputs=len(function.running),
        )

    async def add(self, call: Call, items: Any) -> list[Any]:
        """Give a call more inputs."""
        function = self.functions[call.function_id]
        answers = []
        for item in items:
            added = Input(f"in-{uuid.uuid4().hex[:22]}", call.call_id, item.idx, item.input, call.function_id,
                          call.asynchronous)  # fmt: skip
            self._inputs[added.input_id] = added
            call.inputs.append(added)
            await self._enqueue(function, added)
            answers.append(
                api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=added.input_id, input_jwt=added.input_id)
            )
        return answers

    async def take(self, function: Function, task_id: str) -> Input | None:
        """The next input for a container, as soon as there is one; None when it is to end."""
        while not function.waiting:
            if function.closed:
                return None
            await self._change(None)
        given = function.waiting.popleft()
        given.runs += 1
        given.task_id = task_id
        function.running[given.input_id] = given
        if seconds := function.definition.timeout_secs:
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, lambda: loop.create_task(self._time_out(function, given, given.runs)))
        return given

    async def _time_out(self, function: Function, late: Input, run: int) -> None:
        """Modal's answer to an input that its function's timeout is over for: the container goes, or hangs for ever."""
        if function.running.get(late.input_id) is not late or late.runs != run:
            return
        result = api_pb2.GenericResult(
            status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT,
            exception=f"Task's current input {late.input_id} hit its timeout of {function.definition.timeout_secs}s",
        )
        task_id = late.task_id
        await self.put(api_pb2.FunctionPutOutputsItem(input_id=late.input_id, result=result))
        self.kill(task_id)

    async def put(self, item: Any) -> None:
        """A container's output. A failure is tried again while the function's retries last."""
        done = self._inputs[item.input_id]
        function = self.functions[done.function_id]
        if function.running.pop(item.input_id, None) is None:
            return  # an attempt that was given up on
        if item.result.status != api_pb2.GenericResult.GENERIC_STATUS_SUCCESS and done.runs <= function.retries:
            delay_seconds = function.definition.retry_policy.initial_delay_ms / 1000
            await asyncio.sleep(min(_LONGEST_RETRY_DELAY_SECONDS, delay_seconds))
            await self._enqueue(function, done)
            return
        self._calls[done.call_id].outputs.append(
            api_pb2.FunctionGetOutputsItem(
                result=item.result,
                idx=done.index,
                input_id=done.input_id,
                data_format=item.data_format,
                task_id=done.task_id,
                input_started_at=item.input_started_at,
                output_created_at=item.output_created_at,
            )
        )
        self.tell()

    async def lose(self, function: Function, task_id: str, result: Any) -> None:
        """A container is gone: what it was at has failed, and so has what waits for it if it never got up."""
        for held in [i for i in function.running.values() if i.task_id == task_id]:
            await self.put(api_pb2.FunctionPutOutputsItem(input_id=held.input_id, result=result))

    async def fail_waiting(self, function: Function, result: Any) -> None:
        """A container could not be set up: an input that waited for it takes the blame."""
        if function.waiting:
            blamed = function.waiting.popleft()
            blamed.runs += 1
            function.running[blamed.input_id] = blamed
            await self.put(api_pb2.FunctionPutOutputsItem(input_id=blamed.input_id, result=result))

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _call(self, call_id: str) -> Call:
        if call_id not in self._calls:
            raise FileNotFoundError(f"function call {call_id}")
        return self._calls[call_id]

    async def _enqueue(self, function: Function, added: Input) -> None:
        function.waiting.append(added)
        self.tell()
        assert self.start is not None
        await self.start(function)

    async def _change(self, deadline: float | None) -> None:
        timeout = None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return
