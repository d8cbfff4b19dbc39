"""Containers: started when inputs wait for one, as processes of the wheel's own container entrypoint."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modal_proto import api_pb2

from tests.modal_loopback.apps import App, AppCalls, new_id
from tests.modal_loopback.container import Checkpoint, Container, ContainerCalls, commit_now_and_then
from tests.modal_loopback.faults import Faults
from tests.modal_loopback.functions import Calls, Function
from tests.modal_loopback.roots import BindMount, can_mount, in_own_root
from tests.modal_loopback.views import View
from tests.modal_loopback.volumes import Volumes

_HOME = "/root"
"""Where Modal puts an app's code in a container; here it goes to a folder of the container's own."""


class Containers:
    """Starts a container when inputs wait for one, and sees to what becomes of it.

    `serve` starts a server for one container's calls on a socket, and returns what closes it.
    `environment` is set in every container; `most` containers of one function run at once.
    """

    def __init__(
        self, root: Path, volumes: Volumes, apps: AppCalls, calls: Calls, faults: Faults, serve: Callable[..., Any]
    ) -> None:
        self.environment: dict[str, str] = {}
        self.most = 2
        self.checkpoints: list[Checkpoint] = []
        self.alive: list[Container] = []
        self.started: list[Container] = []
        self._root = root
        self._volumes = volumes
        self._apps = apps
        self._calls = calls
        self._faults = faults
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    async def start_if_needed(self, function: Function) -> None:
        """Start containers until each waiting input has one to go to, or the function's limit is reached."""
        most = min(self.most, function.definition.autoscaler_settings.max_containers or self.most)
        mine = [container for container in self.alive if container.function is function]
        free = sum(container.free_slots() for container in mine)
        for _ in range(min(len(function.waiting) - free, most - len(mine))):
            self._start(function)

    def _start(self, function: Function) -> None:
        app = self._apps.apps[function.app_id]
        task_id = new_id("ta")
        container = Container(task_id, app, function, self._root / "containers" / task_id)
        self.alive.append(container)
        self.started.append(container)
        task = asyncio.get_running_loop().create_task(self._live(container))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def kill(self, task_id: str) -> None:
        """Kill the container of that id."""
        for container in self.alive:
            if container.task_id == task_id:
                container.kill()

    def stop_app(self, app: App) -> None:
        """Kill the app's containers that are at an input; the others end by themselves."""
        for container in self.alive:
            if container.app is app and container.at_work():
                container.kill()

    async def stop(self) -> None:
        """Kill what still runs, and see it off."""
        for function in self._calls.functions.values():
            function.closed = True
        for container in list(self.alive):
            if container.process is not None and container.process.returncode is None:
                container.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _live(self, container: Container) -> None:
        sockets = Path(tempfile.mkdtemp(prefix="modal-"))  # a socket's path may not be long
        close = None
        try:
            mounts = await asyncio.to_thread(self._prepare, container)
            worker = ContainerCalls(container, self._calls, self._faults, self.checkpoints)
            close = await self._serve(worker, str(sockets / "worker"))
            await self._run(container, mounts, f"unix://{sockets}/worker")
        except OSError as error:
            container.failure = _failure(f"the container could not be started: {error}")
        finally:
            if container in self.alive:
                self.alive.remove(container)
            if close is not None:
                close()
            shutil.rmtree(sockets, ignore_errors=True)
        await self._bury(container)

    def _prepare(self, container: Container) -> list[BindMount]:
        """Lay out the container's folder: the app's code, its arguments, and a view of each Volume."""
        definition = container.function.definition
        code = container.folder / "code"
        code.mkdir(parents=True)
        for mount_id in definition.mount_ids:
            for file in self._apps.mounts[mount_id]:
                if file.filename.startswith(f"{_HOME}/"):
                    target = code / file.filename.removeprefix(f"{_HOME}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(self._volumes.block(file.sha256_hex))
        mounts = []
        for wanted in definition.volume_mounts:
            view = View(
                self._volumes.get(wanted.volume_id),
                container.folder / "volumes" / wanted.volume_id / "files",
                wanted.read_only,
            )
            container.views[wanted.volume_id] = view
            mounts.append(BindMount(view.folder, wanted.mount_path, wanted.read_only))
        snapshots = definition.is_checkpointing_function and container.app.deployed
        container.checkpoint_id = new_id("ch") if snapshots else ""
        arguments = api_pb2.ContainerArguments(
            task_id=container.task_id,
            function_id=container.function.function_id,
            app_id=container.app.app_id,
            function_def=definition,
            app_layout=self._apps.layout(container.app),
            environment_name="main",
            checkpoint_id=container.checkpoint_id,
        )
        (container.folder / "arguments").write_bytes(arguments.SerializeToString())
        (container.folder / "tmp").mkdir()
        return mounts

    async def _run(self, container: Container, mounts: list[BindMount], worker_url: str) -> None:
        command = [sys.executable, "-m", "modal._container_entrypoint"]
        container.process = await asyncio.create_subprocess_exec(
            *(in_own_root(command, mounts) if can_mount() else command),
            env=self._variables(container, mounts, worker_url),
            cwd=container.folder / "code",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        commits = asyncio.create_task(commit_now_and_then(container, self._faults))
        try:
            assert container.process.stdout is not None
            async for line in container.process.stdout:
                container.app.log.add(line.decode(errors="replace"))
            await container.process.wait()
        finally:
            commits.cancel()

    def _variables(self, container: Container, mounts: list[BindMount], worker_url: str) -> Mapping[str, str]:
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("MODAL_", "WANSTORE_"))}
        variables |= self._apps.environment_of(container.function.definition)
        variables |= self.environment
        variables |= {
            "MODAL_SERVER_URL": worker_url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": container.task_id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(container.folder / "arguments"),
            "MODAL_RESTORE_STATE_PATH": str(container.folder / "restore-state.json"),
            "PYTHONPATH": str(container.folder / "code"),
            "TMPDIR": str(container.folder / "tmp"),
        }
        if container.checkpoint_id:
            variables["MODAL_ENABLE_SNAP_RESTORE"] = "1"
        if not can_mount():
            named = zip(container.views.values(), mounts, strict=True)
            variables["WANSTORE_MODAL_MOUNTS"] = ":".join(f"{v.volume.name}={m.folder}" for v, m in named)
        return variables

    async def _bury(self, container: Container) -> None:
        """See to the inputs that a container left behind, and start another one if some still wait."""
        function = container.function
        status = container.process.returncode if container.process else None
        result = container.failure or _failure(f"the container ended with status {status}")
        await self._calls.lose(function, container.task_id, result)
        if not container.taken and not function.closed:
            await self._calls.fail_waiting(function, result)
        if not function.closed:
            await self.start_if_needed(function)
        if container.app.detached and not self._calls.unfinished(container.app.app_id):
            self._apps.stop(container.app)


def _failure(reason: str) -> Any:
    return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=reason)
