"""The endpoint's HTTP: `POST /clip`, `POST /clips` and `GET /clips/ID`. Needs FastAPI; knows nothing of Modal.

Whoever makes clips is told apart by built-in exceptions: `ValueError` for a request that is wrong (422), `RuntimeError`
for one that cannot be served now (503) or a job that failed (500), `TimeoutError` (504), `LookupError` for a job that
is not there (404).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fastapi
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

BODY_BYTES = 64 * 1024

Work = Callable[[Any], dict[str, Any]]


def service(make: Work, submit: Work, find: Work) -> fastapi.FastAPI:
    """An ASGI app. `make` returns a clip with its `mp4`, `submit` a job with its `id`, and `find` either, by the id."""
    app = fastapi.FastAPI(title="Wan 2.1, text to video")

    @app.post("/clip")
    async def clip(request: fastapi.Request) -> fastapi.Response:
        return mp4_of(await done(make, await body_of(request)))

    @app.post("/clips")
    async def clips(request: fastapi.Request) -> fastapi.Response:
        job = await done(submit, await body_of(request))
        return JSONResponse(job, 202, {"Location": f"/clips/{job['id']}"})

    @app.get("/clips/{job_id}")
    async def job(job_id: str) -> fastapi.Response:
        found = await done(find, job_id, busy=500)
        return mp4_of(found) if "mp4" in found else JSONResponse(found, 202, {"Retry-After": "30"})

    return app


async def body_of(request: fastapi.Request) -> Any:
    """The JSON that was sent; a body beyond the limit is not read to its end."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise fastapi.HTTPException(413, f"a request has at most {BODY_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise fastapi.HTTPException(400, "the body is not JSON") from None


async def done(work: Work, argument: Any, *, busy: int = 503) -> dict[str, Any]:
    """What `work` returns, or its error as HTTP has it; `busy` is the status of a `RuntimeError`."""
    try:
        return await run_in_threadpool(work, argument)
    except ValueError as error:
        raise fastapi.HTTPException(422, str(error)) from None
    except LookupError as error:
        raise fastapi.HTTPException(404, str(error.args[0])) from None
    except TimeoutError as error:
        raise fastapi.HTTPException(504, str(error)) from None
    except RuntimeError as error:
        raise fastapi.HTTPException(busy, str(error), {"Retry-After": "120"} if busy == 503 else None) from None


def mp4_of(made: dict[str, Any]) -> fastapi.Response:
    """The clip, and in headers how it was made."""
    told = {f"X-Wanstore-{key.capitalize()}": str(made[key]) for key in ("preset", "degraded", "reason", "seconds")}
    return fastapi.Response(made["mp4"], media_type="video/mp4", headers=told)
