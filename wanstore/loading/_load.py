"""A local pipeline folder becomes a ready `WanPipeline`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from wanstore._formats._json import read_json
from wanstore.building._check import check_pipeline, check_sealed, told_if_changed
from wanstore.building._dtypes import FLOAT16, check_dtypes
from wanstore.building._weight_files import Weights, check_fit, open_weights
from wanstore.choices import CompileMode, MemoryMode, WeightsMode
from wanstore.errors import NotFoundError, NotSupportedError
from wanstore.interfaces import Progress, Quiet, Streamed
from wanstore.lean_imports import collection_paused, deferred_imports, import_lean, quiet_libraries, resolve_imported
from wanstore.loading._clock import PhaseClock
from wanstore.memory import MemoryPlan
from wanstore.memory._origin import Origin
from wanstore.memory._plan import check_memory
from wanstore.transfer._page_cache import ReadAhead

if TYPE_CHECKING:
    import torch

    from wanstore.loading._pipeline import WanPipeline

_LOG = logging.getLogger("wanstore")

LIBRARIES = (
    "wanstore.building._skeleton",
    "wanstore.building._tokenizer",
    "wanstore.loading._pipeline",
    "diffusers.schedulers.scheduling_unipc_multistep",  # Wan 2.1's
)
"""What a load imports: its own modules that import the libraries at their top, and what they import later."""


def import_libraries() -> None:
    """Import what a load needs, in half the time, so that later imports of it find it done."""
    import_lean(LIBRARIES)


def load_folder(
    folder: Path,
    *,
    device: str | torch.device | None = None,
    weights: WeightsMode = "resident",
    dtype: Mapping[Any, Any] | None = None,
    attention: str | None = None,
    memory: MemoryMode | MemoryPlan = "auto",
    verify: bool = False,
    compile: CompileMode = "off",
    functions: Iterable[Path] = (),
    sealed: bool = True,
    progress: Progress | None = None,
    stream: Streamed | None = None,
) -> WanPipeline:
    """The pipeline in a local `folder`; the other arguments, and what is raised, are those of `wanstore.load`.

    `functions` are folders of compiled functions. The weights of a `stream`, whose the folder then is, come from there.
    """
    folder, progress, clock = Path(folder), progress or Quiet(), PhaseClock()
    with collection_paused(), ExitStack() as stack:
        with clock.phase("check"):
            _check_arguments(device, weights, compile, verify=verify, sealed=sealed, streamed=stream is not None)
            dtypes = check_dtypes(dtype)
            check_memory(memory)
            if not folder.is_dir():
                raise NotFoundError(f"There is no folder {folder}", "Check the path")
            verify = verify and not stream  # whose weights are hashed as they come
            manifest = check_sealed(folder, verify=verify, progress=progress) if sealed else None
            stack.enter_context(told_if_changed(folder, manifest))
            check_pipeline(folder)
            files = stack.enter_context(open_weights(folder))
        transfer = None
        with clock.phase("imports"):
            if weights == "resident":
                opened = [file for group in files.values() for file in group]
                with nullcontext() if "torch" in sys.modules or stream else ReadAhead(opened):
                    from wanstore.building._weight_transfer import transfer_weights
                transfer = stack.enter_context(
                    transfer_weights(files, device, dtypes, progress, folder.name, source=stream)
                )
            import_libraries()
            from wanstore.building._attention import check_known
            from wanstore.building._block_functions import import_compiler
            from wanstore.loading._activate import fill, make_ready
        stack.enter_context(quiet_libraries())  # now, since diffusers sets its own level when it is imported
        with deferred_imports():  # libraries import more while they build
            called = stream.address if stream else str(folder)
            models = _skeletons(folder, called, files, dtypes, clock)
            origin = Origin(folder, manifest, attention, dtypes, memory, compile, tuple(functions), stream is not None)
            if origin.attention:
                check_known(origin.attention)
            if origin.compiles:  # while weights move, or before a memory snapshot
                with clock.phase("compiler"), suppress(Exception):  # using it says what is wrong
                    import_compiler()
            if transfer:  # before the tokenizer, which holds the interpreter's lock for most of a second
                fill(models, origin, transfer, clock)
            pipe = _assemble(folder, called, models, clock)
    pipe._origin, pipe._deferred = origin, transfer is None
    applied = make_ready(pipe, clock) if transfer else None
    resolve_imported()
    pipe.load_report = report = clock.report(called, str(pipe.device), applied)
    done = f"loaded on {report.device}" if transfer else "prepared"
    _LOG.info("%s: %s in %.2f s, bound by %s", folder.name, done, report.seconds, report.bound_by)
    return pipe


def _check_arguments(device: Any, weights: str, compile: str, *, verify: bool, sealed: bool, streamed: bool) -> None:
    if weights not in get_args(WeightsMode):
        raise NotSupportedError(f"Weights can't be {weights!r}", "Choose resident or deferred")
    if compile not in get_args(CompileMode):
        raise NotSupportedError(f"compile can't be {compile!r}", "Choose off, cached or on")
    if weights == "deferred" and str(device or "cpu") != "cpu":
        raise NotSupportedError("Deferred weights have no device yet", "Name the device to activate")
    if weights == "deferred" and streamed:
        raise NotSupportedError("Deferred weights are read from a folder of this machine", "Leave out cache=False")
    if verify and not sealed:
        raise NotSupportedError("Without a manifest there are no hashes to verify", "Leave out one of the two")


def _skeletons(
    folder: Path, called: str, files: Weights, dtypes: Mapping[str, str], clock: PhaseClock
) -> dict[str, Any]:
    """Each component's model without weights, said to come from `called`.

    Raises `DamagedError` unless `files` hold just what they need.
    """
    from wanstore.building._skeleton import build_skeleton, check_classes, wanted_tensors

    with clock.phase("skeleton"):
        check_classes()
        models = {}
        for component, group in files.items():
            config, dtype = read_json(folder / component / "config.json"), dtypes.get(component, FLOAT16)
            models[component] = build_skeleton(
                component, config, f"{called}/{component}", dtype, tensors=sum(len(file.tensors) for file in group)
            )
            check_fit(folder, component, group, wanted_tensors(models[component]))
        return models


def _assemble(folder: Path, called: str, models: dict[str, Any], clock: PhaseClock) -> WanPipeline:
    from wanstore.building._scheduler import load_scheduler
    from wanstore.building._tokenizer import load_tokenizer
    from wanstore.loading._pipeline import WanPipeline

    with clock.phase("tokenizer"):
        tokenizer = load_tokenizer(folder / "tokenizer")
        tokenizer.name_or_path = f"{called}/tokenizer"
    with clock.phase("pipeline"):
        pipe = WanPipeline(tokenizer=tokenizer, scheduler=load_scheduler(folder), **models)
        pipe.register_to_config(_name_or_path=called)
        return pipe
