"""The whole of wanstore on a tiny Wan 2.1: real classes and clients, random weights, a Hub on 127.0.0.1."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from wanstore.display._text import human_bytes
from wanstore.errors import AlreadyExistsError, NotFoundError
from wanstore.presets import Preset
from wanstore.testing.hub import LoopbackHub

REPO = "Wan-AI/Tiny-Wan2.1-Diffusers"
NAME = "wan2.1-fp16"
PRESETS = (
    Preset("64p/0.6s", width=64, height=64, frames=9, steps=4),
    Preset("128p/1s", width=128, height=128, frames=17, steps=4),
)


def run_demo(folder: Path, say: Callable[[str], Any]) -> dict[str, Any]:
    """Make, serve, set up, verify, load, generate and measure; `say` gets a line for each step."""
    began = time.perf_counter()
    store_folder = folder / "store"
    _make_room(store_folder)
    with tempfile.TemporaryDirectory() as workplace, LoopbackHub(xet=_content_folder(workplace)) as hub:
        # The Hub client reads these when it is imported: the demo uses only its own Hub.
        os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=workplace, HF_HUB_DISABLE_TELEMETRY="1")
        import wanstore
        from wanstore.testing.tiny_wan import make_tiny_wan

        say("A tiny Wan 2.1 with RANDOM weights: the clip will be noise, everything else is real.")
        source = make_tiny_wan(Path(workplace) / "published")
        hub.add_repo(REPO, source)
        say(f"made      a float32 checkpoint, served as {REPO} by a Hub on {hub.url}")
        store = wanstore.open_store(store_folder)
        manifest = wanstore.setup(REPO, store, name=NAME)
        say(f"set up    {NAME} in {store_folder}: float16, {human_bytes(manifest.size_bytes)}, sealed")
        report = store.verify(NAME)
        say(f"verified  {report.files} files, {'all whole' if report.ok else 'NOT whole'}")
        # A CPU takes many times as long for the VAE's convolutions in float16.
        pipe = wanstore.load(NAME, store=store, device="cpu", dtype={"vae": "float32"})
        say(f"loaded\n{pipe.load_report}")
        clip = _make_clip(pipe, folder / "clip.mp4")
        measured = wanstore.benchmark(pipe, PRESETS)
    from wanstore.benchmarking.page import summary

    say(f"generated {clip}\n\n{summary(measured)}")
    seconds = time.perf_counter() - began
    say(f"Done in {seconds:.0f} s. The clip: {clip.absolute()}  The store: {store_folder.absolute()}")
    return {
        "clip": str(clip.absolute()),
        "store": str(store_folder.absolute()),
        "weights": "random",
        "verified": report.ok,
        "load": attrs.asdict(pipe.load_report),
        "presets": [attrs.asdict(row) for row in measured.rows],
        "seconds": seconds,
    }


def _content_folder(workplace: str) -> Path | None:
    """A folder for the Hub's content store, where there is something to make and read it with."""
    folder = Path(workplace, "content")
    folder.mkdir()
    return folder if find_spec("hf_xet") else None


def _make_room(store_folder: Path) -> None:
    """Delete an earlier demo's pipeline, and nobody else's."""
    import wanstore

    store = wanstore.open_store(store_folder)
    try:
        manifest = store.manifest(NAME)
    except NotFoundError:
        return
    if manifest.source.location != REPO:
        raise AlreadyExistsError(f"{store_folder} holds {NAME}, which was not made by a demo", "Name another folder")
    store.delete(NAME)


def _make_clip(pipe: Any, path: Path) -> Path:
    from wanstore.generation import generate, write_clip

    write_clip(generate(pipe, "a cat walks on the grass", PRESETS[0]), path)
    return path
