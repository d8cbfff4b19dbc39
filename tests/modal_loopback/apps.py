"""Apps as the client makes them: images, code, secrets, functions and classes, run or deployed."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_loopback.functions import Calls, Function
from tests.modal_loopback.logs import Log
from tests.modal_loopback.rpcs import metadata_of
from tests.modal_loopback.volumes import Volumes
from tests.modal_loopback.web import WebEndpoints


@attrs.define
class App:
    """One app: its functions and classes by their names, and what its containers printed."""

    app_id: str
    name: str = ""
    detached: bool = False
    deployed: bool = False
    stopped: bool = False
    function_ids: dict[str, str] = attrs.field(factory=dict)
    class_ids: dict[str, str] = attrs.field(factory=dict)
    log: Log = attrs.field(factory=Log)


def new_id(kind: str) -> str:
    """An id as Modal makes them: the kind's two letters, then anything."""
    return f"{kind}-{uuid.uuid4().hex[:22]}"


class AppCalls:
    """What `modal run` and `modal deploy` ask for. Images are taken as they are: nothing is built."""

    def __init__(self, calls: Calls, volumes: Volumes, secrets: dict[str, dict[str, str]], web: WebEndpoints) -> None:
        self.apps: dict[str, App] = {}
        self.stop_containers: Callable[[App], None] = lambda app: None
        self.mounts: dict[str, list[Any]] = {}
        self._calls = calls
        self._volumes = volumes
        self._named_secrets = secrets
        self._web = web
        self._secrets: dict[str, dict[str, str]] = {}
        self._images: dict[str, dict[str, str]] = {}
        self._variants: dict[bytes, str] = {}

    def environment_of(self, definition: Any) -> dict[str, str]:
        """Variables that a function's image and secrets set."""
        found = dict(self._images.get(definition.image_id, {}))
        for secret_id in definition.secret_ids:
            found |= self._secrets[secret_id]
        return found

    def EnvironmentGetOrCreate(self, request: Any) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-main", metadata=api_pb2.EnvironmentMetadata(name="main", settings=settings)
        )

    def ClientHello(self, request: Any) -> Any:
        return api_pb2.ClientHelloResponse()

    def AppCreate(self, request: Any) -> Any:
        app = App(new_id("ap"), request.description, detached=request.app_state == api_pb2.APP_STATE_DETACHED)
        self.apps[app.app_id] = app
        return api_pb2.AppCreateResponse(app_id=app.app_id, app_page_url=f"http://127.0.0.1/apps/{app.app_id}")

    def AppHeartbeat(self, request: Any) -> Any:
        return Empty()

    def AppPublish(self, request: Any) -> Any:
        app = self.apps[request.app_id]
        app.name = request.name or app.name
        app.deployed = request.app_state == api_pb2.APP_STATE_DEPLOYED
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        return api_pb2.AppPublishResponse(url=f"http://127.0.0.1/apps/{app.app_id}", deployed_at=time.time())

    def AppGetByDeploymentName(self, request: Any) -> Any:
        app = self._deployed(request.name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=app.app_id if app else "")

    def AppGetLayout(self, request: Any) -> Any:
        return api_pb2.AppGetLayoutResponse(app_layout=self.layout(self.apps[request.app_id]))

    async def AppGetLogs(self, request: Any) -> AsyncIterator[Any]:
        log = self.apps[request.app_id].log
        async for number, text in log.lines_after(int(request.last_entry_id or 0)):
            yield api_pb2.TaskLogsBatch(
                entry_id=str(number),
                items=[api_pb2.TaskLogs(data=text, file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)],
            )
        yield api_pb2.TaskLogsBatch(app_done=True)

    def AppClientDisconnect(self, request: Any) -> Any:
        app = self.apps[request.app_id]
        if not (app.detached and self._calls.unfinished(app.app_id)):
            self.stop(app)
        return Empty()

    def AppStop(self, request: Any) -> Any:
        self.stop(self.apps[request.app_id])
        return Empty()

    def stop(self, app: App) -> None:
        app.stopped = True
        self._calls.close(app.app_id)
        self.stop_containers(app)
        app.log.end()

    def layout(self, app: App) -> Any:
        """The app's objects, as a container or a second deployment wants to know them."""
        functions = [self._calls.functions[function_id] for function_id in app.function_ids.values()]
        needed = {d.object_id for function in functions for d in function.definition.object_dependencies}
        return api_pb2.AppLayout(
            objects=[
                *(api_pb2.Object(object_id=f.function_id, function_handle_metadata=f.handle()) for f in functions),
                *(
                    api_pb2.Object(object_id=class_id, class_handle_metadata=api_pb2.ClassHandleMetadata())
                    for class_id in app.class_ids.values()
                ),
                *map(self._dependency, sorted(needed)),
            ],
            function_ids=app.function_ids,
            class_ids=app.class_ids,
        )

    def _dependency(self, object_id: str) -> Any:
        if object_id.startswith("vo-"):
            return api_pb2.Object(object_id=object_id, volume_metadata=metadata_of(self._volumes.get(object_id)))
        return api_pb2.Object(object_id=object_id)

    def SecretGetOrCreate(self, request: Any) -> Any:
        name = request.deployment_name
        if name and name not in self._named_secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found")
        secret_id = new_id("st")
        self._secrets[secret_id] = self._named_secrets[name] if name else dict(request.env_dict)
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=api_pb2.SecretMetadata(name=name))

    def MountBatchedCheckExistence(self, request: Any) -> Any:
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=request.sha256_hex_hashes)

    def MountGetOrCreate(self, request: Any) -> Any:
        mount_id = new_id("mo")
        self.mounts[mount_id] = list(request.files)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=api_pb2.MountHandleMetadata())

    def ImageGetOrCreate(self, request: Any) -> Any:
        image_id = new_id("im")
        variables: dict[str, str] = {}
        for base in request.image.base_images:
            variables |= self._images.get(base.image_id, {})
        for command in request.image.dockerfile_commands:
            if command.startswith("ENV "):
                variables |= dict(pair.split("=", 1) for pair in shlex.split(command[4:]))
        self._images[image_id] = variables
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=_success(), metadata=api_pb2.ImageMetadata())

    def ImageJoinStreaming(self, request: Any) -> Iterator[Any]:
        yield api_pb2.ImageJoinStreamingResponse(result=_success())

    def FunctionPrecreate(self, request: Any) -> Any:
        definition = api_pb2.Function(function_name=request.function_name, function_type=request.function_type)
        for name, method in request.method_definitions.items():
            definition.method_definitions[name].CopyFrom(method)
        function = self._calls.define(request.existing_function_id or new_id("fu"), request.app_id, definition)
        return api_pb2.FunctionPrecreateResponse(function_id=function.function_id, handle_metadata=function.handle())

    async def FunctionCreate(self, request: Any) -> Any:
        wanted = (
            request.function if request.HasField("function") else request.function_data.ranked_functions[0].function
        )
        function = self._calls.define(request.existing_function_id or new_id("fu"), request.app_id, wanted)
        await self._web.serve(function)
        return api_pb2.FunctionCreateResponse(
            function_id=function.function_id, function_data=function.data(), handle_metadata=function.handle()
        )

    def FunctionBindParams(self, request: Any) -> Any:
        """A variant of a function: another Volume, GPU, secret or limit. Equal wishes share one variant."""
        base = self._calls.functions[request.function_id]
        key = request.SerializeToString(deterministic=True)
        if key not in self._variants:
            definition = api_pb2.Function()
            definition.CopyFrom(base.definition)
            _apply(request.function_options, definition)
            self._variants[key] = self._calls.define(new_id("fu"), base.app_id, definition).function_id
        function = self._calls.functions[self._variants[key]]
        return api_pb2.FunctionBindParamsResponse(
            bound_function_id=function.function_id, handle_metadata=function.handle()
        )

    def ClassCreate(self, request: Any) -> Any:
        class_id = request.existing_class_id or new_id("cs")
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())

    def ClassGet(self, request: Any) -> Any:
        app = self._deployed(request.app_name)
        if app is None or request.object_tag not in app.class_ids:
            raise GRPCError(Status.NOT_FOUND, f"class {request.object_tag} of app {request.app_name} not found")
        return api_pb2.ClassGetResponse(
            class_id=app.class_ids[request.object_tag], handle_metadata=api_pb2.ClassHandleMetadata()
        )

    def FunctionGet(self, request: Any) -> Any:
        app = self._deployed(request.app_name)
        if app is None or request.object_tag not in app.function_ids:
            raise GRPCError(Status.NOT_FOUND, f"function {request.object_tag} of app {request.app_name} not found")
        function: Function = self._calls.functions[app.function_ids[request.object_tag]]
        return api_pb2.FunctionGetResponse(
            function_id=function.function_id, function=function.data(), handle_metadata=function.handle()
        )

    def _deployed(self, name: str) -> App | None:
        return next((app for app in self.apps.values() if app.deployed and app.name == name and not app.stopped), None)


def _apply(options: Any, definition: Any) -> None:
    if options.replace_volume_mounts:
        del definition.volume_mounts[:]
        definition.volume_mounts.extend(options.volume_mounts)
    if options.replace_secret_ids:
        definition.secret_ids[:] = options.secret_ids
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    if options.HasField("concurrency_limit"):
        definition.autoscaler_settings.max_containers = options.concurrency_limit
    if options.HasField("timeout_secs"):
        definition.timeout_secs = options.timeout_secs
    definition.resources.MergeFrom(options.resources)


def _success() -> Any:
    return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
