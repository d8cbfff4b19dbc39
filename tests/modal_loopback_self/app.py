"""A small app for the loopback's own tests: a function, one that spawns it, and one behind HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import modal
from fastapi.responses import JSONResponse, StreamingResponse

app = modal.App("small")


@app.function()
def half(number: int, seconds: float = 0) -> int:
    """Half of it, after a while."""
    time.sleep(seconds)
    return number // 2


@app.function()
def start_half(number: int) -> str:
    """The id of a call that halves it."""
    return str(half.spawn(number).object_id)


@app.function()
@modal.concurrent(max_inputs=10)
@modal.asgi_app(requires_proxy_auth=True)
def web() -> Any:
    """Says what it was asked, in pieces, after a while, or not at all."""
    service = fastapi.FastAPI()
    late_calls = 0

    @service.post("/echo/{name}")
    async def echo(name: str, request: fastapi.Request) -> fastapi.Response:
        body = (await request.body()).decode()
        told = {"name": name, "query": dict(request.query_params), "body": body, "kind": request.headers["x-kind"]}
        return JSONResponse(told, 202, {"X-Told": "yes"})

    @service.get("/pieces")
    async def pieces() -> fastapi.Response:
        return StreamingResponse(bytes([number]) * 3_000_000 for number in range(4))

    @service.post("/late")
    async def late() -> str:
        nonlocal late_calls
        late_calls += 1
        await asyncio.sleep(1)
        return "late"

    @service.get("/count")
    async def count() -> int:
        return late_calls

    @service.get("/death")
    async def death() -> None:
        os._exit(1)

    @service.get("/half")
    async def half_of_it() -> fastapi.Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            await asyncio.sleep(0.5)
            os._exit(1)

        return StreamingResponse(pieces())

    return service
