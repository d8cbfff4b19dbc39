"""Damaged and hostile input, a row each: the command line ends in one line and status 1, in bounded time and memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.jobs import run
from tests.faults.tally import Tally

Damage = Callable[[Path], object]
_SECONDS = 20.0
_MEMORY_BYTES = 8 << 30
"""Address space, most of which torch maps and never touches."""


def _write(path: str, data: bytes) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / path
        file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    return damage


def _header(size: int, header: bytes = b"{}") -> bytes:
    """The beginning of a safetensors file that says its header has `size` bytes."""
    return size.to_bytes(8, "little") + header


def _huge(path: str) -> Damage:
    """A file of 1 TiB that takes no room."""
    return lambda folder: os.truncate(folder / path, 1 << 40)


def _instead(path: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / path).unlink()
        make(folder / path)

    return damage


_DEEP = b"[" * 200_000 + b"]" * 200_000
_SURROGATE = json.dumps({"_class_name": "\ud800"}).encode()
_LIE = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"

EVERYWHERE: dict[str, Damage] = {
    "model_index: deep JSON": _write("model_index.json", _DEEP),
    "model_index: a lone surrogate": _write("model_index.json", _SURROGATE),
    "model_index: no UTF-8": _write("model_index.json", b"\xff\xfe\x00"),
    "model_index: a list": _write("model_index.json", b"[]"),
    "model_index: a huge number": _write("model_index.json", b'{"x": ' + b"9" * 10_000 + b"}"),
    "model_index: huge": _huge("model_index.json"),
    "config: deep JSON": _write("vae/config.json", _DEEP),
    "config: a lone surrogate": _write("vae/config.json", _SURROGATE),
    "config: a billion channels": _write(
        "vae/config.json", b'{"_class_name": "AutoencoderKLWan", "z_dim": 1000000000}'
    ),
    "config: NaN": _write("transformer/config.json", b'{"num_layers": NaN}'),
    "config: a folder": _instead("vae/config.json", Path.mkdir),
    "config: a pipe": _instead("vae/config.json", os.mkfifo),
    "config: a link to nowhere": _instead("vae/config.json", lambda path: path.symlink_to("/nowhere")),
    "config: a link to itself": _instead("vae/config.json", lambda path: path.symlink_to(path)),
    "tokenizer: deep JSON": _write("tokenizer/tokenizer.json", _DEEP),
    "tokenizer: empty": _write("tokenizer/tokenizer.json", b""),
    "scheduler: deep JSON": _write("scheduler/scheduler_config.json", _DEEP),
    "weights: empty": _write(_WEIGHTS, b""),
    "weights: a header of 2^63 bytes": _write(_WEIGHTS, _header(1 << 63)),
    "weights: a header beyond the end": _write(_WEIGHTS, _header(1 << 20)),
    "weights: a header of deep JSON": _write(_WEIGHTS, _header(len(_DEEP), _DEEP)),
    "weights: a tensor beyond the end": _write(_WEIGHTS, _header(len(_LIE), _LIE)),
    "weights: huge": _huge(_WEIGHTS),
    "weights: a pipe": _instead(_WEIGHTS, os.mkfifo),
    "weights: gone": _instead(_WEIGHTS, lambda path: None),
}
"""In a source, setup must refuse it; in a stored pipeline, verify must notice it."""

STORED: dict[str, Damage] = {
    "manifest: deep JSON": _write("wanstore.json", _DEEP),
    "manifest: a lone surrogate": _write("wanstore.json", _SURROGATE),
    "manifest: empty": _write("wanstore.json", b""),
    "manifest: a newer schema": _write("wanstore.json", b'{"schema_version": 99}'),
    "manifest: a schema of NaN": _write("wanstore.json", b'{"schema_version": NaN}'),
    "manifest: huge": _huge("wanstore.json"),
    "manifest: a pipe": _instead("wanstore.json", os.mkfifo),
    "manifest: a link": _instead("wanstore.json", lambda path: path.symlink_to("/etc/passwd")),
    "a link beside the files": lambda folder: (folder / "extra").symlink_to("/etc"),
    "a name that is no UTF-8": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text(""),
}


def hostile(stored: Path, source: Path, folder: Path, tally: Tally, *, step: int) -> None:
    """Each `step`th row: setup from a source, and verify of a stored pipeline, that was damaged so."""
    place = folder / "hostile"
    for name, damage in list(EVERYWHERE.items())[::step]:
        _try("hostile source", name, source, place / "source", damage, ("setup", str(place / "source")), place, tally)
    for name, damage in list((EVERYWHERE | STORED).items())[step // 2 :: step]:
        _try("hostile pipeline", name, stored, place / "store", damage, ("verify", "w"), place, tally)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _try(
    kind: str,
    name: str,
    original: Path,
    copy: Path,
    damage: Damage,
    arguments: tuple[str, ...],
    place: Path,
    tally: Tally,
) -> None:
    shutil.copytree(original, copy)
    damage(copy / "w" if kind == "hostile pipeline" else copy)
    began = time.monotonic()
    end = run(arguments, place / "store", _limit_memory)
    tally.tried(kind)
    if end.status != 1 or end.fault:
        tally.failed(kind, f"{name}: {end.fault or end}")
    if time.monotonic() - began > _SECONDS:
        tally.failed(kind, f"{name}: took {time.monotonic() - began:.0f} s")
    shutil.rmtree(place)
