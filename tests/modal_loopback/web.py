"""Web endpoints: each has an address on 127.0.0.1, and a request to it is an input of its function."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import attrs
from aiohttp import web
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from modal._serialization import deserialize_data_format, serialize, serialize_data_format
from modal_proto import api_pb2
from multidict import CIMultiDict

from tests.modal_loopback.functions import Call, Calls, Function

_HOST = "127.0.0.1"
_CALL_ID = "__modal_function_call_id"
"""What Modal adds to an address where the answer to an earlier request will be."""


@attrs.define(eq=False)
class _Exchange:
    """A request's body, and the ASGI messages that the function's container answers it with."""

    call: Call
    body: bytes
    messages: asyncio.Queue[dict[str, Any]] = attrs.field(factory=asyncio.Queue)


class _FailedError(Exception):
    """The function failed, or its container died, before its answer was complete."""


class WebEndpoints:
    """Serves functions made by `modal.asgi_app` and its like. Tokens of proxy authentication are any two strings.

    `redirect_seconds` is when a request that is not answered yet is redirected to where its answer will be.
    """

    def __init__(self, calls: Calls) -> None:
        self.redirect_seconds = 150.0
        self._calls = calls
        self._exchanges: dict[str, _Exchange] = {}
        self._runners: list[web.AppRunner] = []

    async def serve(self, function: Function) -> None:
        """Give the function an address, if it is to have one. A new deployment of it keeps the old one's."""
        if function.web_url or not function.definition.webhook_config.type:
            return

        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._answer(function, request)

        app = web.Application(client_max_size=1 << 31)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, _HOST, 0).start()
        function.web_url = f"http://{_HOST}:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def FunctionCallGetDataIn(self, request: Any) -> AsyncIterator[Any]:
        """The body, then nothing: a stream that ends before the call does is asked for again at once."""
        exchange = self._exchanges[request.function_call_id]
        if not request.last_index:
            message = {"type": "http.request", "body": exchange.body, "more_body": False}
            data = serialize_data_format(message, api_pb2.DATA_FORMAT_ASGI)
            yield api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=data, index=1)
        await self._calls.finish(exchange.call)

    def FunctionCallPutDataOut(self, request: Any) -> Any:
        for chunk in request.data_chunks:
            message = deserialize_data_format(chunk.data, chunk.data_format, None)
            self._exchanges[request.function_call_id].messages.put_nowait(message)
        return Empty()

    async def _answer(self, function: Function, request: web.Request) -> web.StreamResponse:
        if function.closed:
            return web.Response(status=404, text="modal-http: app for invoked web endpoint is stopped")
        credentials = request.headers.get("Modal-Key"), request.headers.get("Modal-Secret")
        if function.definition.webhook_config.requires_proxy_auth and not all(credentials):
            return web.Response(status=401, text="modal-http: missing credentials for proxy authorization")
        exchange = self._exchanges.get(request.query.get(_CALL_ID, ""))
        if exchange is None:
            exchange = await self._ask(function, request)
        try:
            start = await asyncio.wait_for(self._message(exchange), self.redirect_seconds)
        except TimeoutError:
            raise web.HTTPSeeOther(request.rel_url.update_query({_CALL_ID: exchange.call.call_id})) from None
        except _FailedError:
            return web.Response(status=500, text="modal-http: internal error: function failed")
        return await self._relay(exchange, start, request)

    async def _ask(self, function: Function, request: web.Request) -> _Exchange:
        """Make the request an input of the function."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "query_string": request.rel_url.raw_query_string.encode(),
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": (request.remote, 0),
        }
        exchange = _Exchange(self._calls.open(function.function_id), await request.read())
        self._exchanges[exchange.call.call_id] = exchange
        # Pickled: the client reads an input of DATA_FORMAT_ASGI as the scope alone, and then misses its arguments.
        item = api_pb2.FunctionInput(args=serialize(((scope,), {})), data_format=api_pb2.DATA_FORMAT_PICKLE)
        await self._calls.add(exchange.call, [api_pb2.FunctionPutInputsItem(idx=0, input=item)])
        return exchange

    async def _relay(self, exchange: _Exchange, start: dict[str, Any], request: web.Request) -> web.StreamResponse:
        """Pass the answer on, piece by piece as it comes; one that breaks off closes the connection."""
        headers = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"])
        response = web.StreamResponse(status=start["status"], headers=headers)
        await response.prepare(request)
        more = True
        while more:
            message = await self._message(exchange)
            await response.write(message["body"])
            more = message["more_body"]
        await response.write_eof()
        return response

    async def _message(self, exchange: _Exchange) -> dict[str, Any]:
        """The next message from the container, or `_FailedError` if none will come."""
        message = asyncio.ensure_future(exchange.messages.get())
        finish = asyncio.ensure_future(self._calls.finish(exchange.call))
        try:
            await asyncio.wait([message, finish], return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                return message.result()
            raise _FailedError
        finally:
            message.cancel()
            finish.cancel()
