"""The server: gRPC for the calls, HTTP for the blocks, in a thread of its own, on 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpclib.const
import grpclib.server
from aiohttp import web
from grpclib import GRPCError, Status
from modal_proto.api_grpc import ModalClientBase

from tests.modal_loopback.apps import AppCalls
from tests.modal_loopback.containers import Containers
from tests.modal_loopback.faults import Faults, InjectedError
from tests.modal_loopback.functions import Calls
from tests.modal_loopback.rpcs import DictCalls, VolumeCalls
from tests.modal_loopback.volumes import Volumes
from tests.modal_loopback.web import WebEndpoints

_HOST = "127.0.0.1"


class _Servicer(ModalClientBase):
    """Finds the method that answers an RPC among `calls`; what none of them knows is UNIMPLEMENTED."""

    def __init__(self, calls: tuple[object, ...], faults: Faults) -> None:
        self._calls = calls
        self._faults = faults

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        handlers = super().__mapping__()
        return {
            path: handler._replace(func=self._answerer(path.rpartition("/")[2])) for path, handler in handlers.items()
        }

    def _answerer(self, name: str) -> Callable[[Any], Awaitable[None]]:
        method = next((getattr(calls, name) for calls in self._calls if hasattr(calls, name)), None)

        async def answer(stream: Any) -> None:
            request = await stream.recv_message()
            if method is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the loopback does not know {name}")
            try:
                await self._faults.meet(name)
                async for message in _messages(method(request)):
                    await stream.send_message(message)
            except InjectedError:
                raise GRPCError(Status.UNAVAILABLE, "injected") from None
            except FileNotFoundError as error:
                raise GRPCError(Status.NOT_FOUND, f"{error}: not found") from None
            except (OSError, ValueError) as error:
                raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None

        return answer


async def _messages(response: Any) -> AsyncIterator[Any]:
    """What a method returned, whatever the way: one message or many, at once or awaited."""
    if isinstance(response, AsyncIterator):
        async for message in response:
            yield message
    elif isinstance(response, Iterator):
        for message in response:
            yield message
    else:
        yield (await response if isinstance(response, Awaitable) else response)


# The base class declares every RPC abstract; here they are answered by name instead.
_AnsweringServicer: Any = type("_AnsweringServicer", (_Servicer,), {})
_AnsweringServicer.__abstractmethods__ = frozenset()


class _Transfers:
    """The HTTP side: blocks come by PUT and go by GET."""

    def __init__(self, volumes: Volumes, faults: Faults) -> None:
        self._volumes = volumes
        self._faults = faults
        self._blobs: dict[str, str] = {}

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 31)
        app.router.add_put("/blobs/{name}", self.put)
        app.router.add_get("/blobs/{name}", self.get_blob)
        app.router.add_get("/files/{key}/{number}", self.get)
        return app

    async def put(self, request: web.Request) -> web.Response:
        data = await request.read()
        await self._meet("PUT")
        await asyncio.sleep(self._volumes.link.seconds(len(data)))
        self._blobs[request.match_info["name"]] = self._volumes.add_block(data)
        return web.Response(body=b"stored", headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    async def get_blob(self, request: web.Request) -> web.Response:
        await self._meet("GET")
        return web.Response(body=self._volumes.block(self._blobs[request.match_info["name"]]))

    async def get(self, request: web.Request) -> web.Response:
        await self._meet("GET")
        data = self._volumes.read(request.match_info["key"], int(request.match_info["number"]))
        await asyncio.sleep(self._volumes.link.seconds(len(data)))
        return web.Response(body=data.rstrip(b"\0"))

    async def _meet(self, method: str) -> None:
        try:
            await self._faults.meet(method)
        except InjectedError:
            raise web.HTTPInternalServerError(text="injected") from None


class ControlPlane:
    """Runs between `with` and its end. `url` is for MODAL_SERVER_URL; the rest is the test's to look at and to set.

    `secrets` are the account's, by name. `containers.environment` is set in every container.
    """

    def __init__(self, root: Path) -> None:
        self.volumes = Volumes(root)
        self.faults = Faults()
        self.secrets: dict[str, dict[str, str]] = {}
        self.calls = Calls(self.faults)
        self.web = WebEndpoints(self.calls)
        self.apps = AppCalls(self.calls, self.volumes, self.secrets, self.web)
        self.containers = Containers(root, self.volumes, self.apps, self.calls, self.faults, self._serve_container)
        self.calls.start = self.containers.start_if_needed
        self.calls.kill = self.containers.kill
        self.apps.stop_containers = self.containers.stop_app
        self.url = ""
        self._shared: tuple[object, ...] = ()
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="modal-loopback", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30), "the loopback did not start"
        return self

    def lose_clients(self) -> None:
        """What Modal does when it hears no more of the clients: apps that are not detached end, with their calls."""
        for app in self.apps.apps.values():
            if not (app.detached or app.deployed or app.stopped):
                self._loop.call_soon_threadsafe(self.apps.stop, app)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        transfers = web.AppRunner(_Transfers(self.volumes, self.faults).app(), shutdown_timeout=0.01)
        await transfers.setup()
        await web.TCPSite(transfers, _HOST, 0).start()
        volumes = VolumeCalls(self.volumes, f"http://{_HOST}:{transfers.addresses[0][1]}")
        self._shared = (volumes, DictCalls(), self.apps, self.calls, self.web)
        server = grpclib.server.Server([_AnsweringServicer(self._shared, self.faults)])
        # Named as TCP, or asyncio leaves Nagle's algorithm on, and each call waits for 40 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind((_HOST, 0))
        await server.start(sock=listener)
        self.url = f"http://{_HOST}:{listener.getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        await self.containers.stop()
        await self.web.stop()
        self.volumes.close()
        server.close()
        await transfers.cleanup()
        await asyncio.sleep(0)  # for closed connections to be taken off the loop

    async def _serve_container(self, worker: object, path: str) -> Callable[[], None]:
        """Serve one container on a socket of its own: that tells who is calling."""
        server = grpclib.server.Server([_AnsweringServicer((worker, *self._shared), self.faults)])
        await server.start(path=path)
        return server.close
