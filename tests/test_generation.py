"""Clips on the disk: whole or not at all, and never in the place of something else."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import av
import numpy as np
import pytest

from wanstore.errors import WanstoreError
from wanstore.generation import check_place, generate, write_clip
from wanstore.presets import Preset

FRAMES = np.random.default_rng(0).random((5, 64, 64, 3), np.float32)
PRESET = Preset("tiny", width=64, height=64, frames=5)
SMALL = Preset("small", width=32, height=32, frames=5, steps=4)


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """In the block no file of this process grows larger: the disk is full, as it were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Asked:
    """Stands for a pipeline, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.scheduler: Any = Scheduler(flow_shift=3.0)

    def set_progress_bar_config(self, **_: Any) -> None: ...

    def __call__(self, prompt: str, **asked: Any) -> Any:
        self.asked = asked
        return SimpleNamespace(frames=[FRAMES])


class Scheduler:
    def __init__(self, **config: Any) -> None:
        self.config = SimpleNamespace(**config)

    @classmethod
    def from_config(cls, config: Any, **changes: Any) -> Any:
        return cls(**{**vars(config), **changes})


@pytest.mark.parametrize(("given", "used"), [(None, "blurred"), ("", ""), ("dark", "dark")])
def test_a_clip_is_made_by_its_presets_recipe(given: str | None, used: str) -> None:
    """Whatever the scheduler was stored with; a negative prompt of one's own goes first, and "" is none."""
    pipe = Asked()
    preset = attrs.evolve(PRESET, steps=7, guidance_scale=2.5, flow_shift=9.0, negative_prompt="blurred")
    generate(pipe, "a cat", preset, negative_prompt=given)
    assert pipe.scheduler.config.flow_shift == 9.0
    assert (pipe.asked["num_inference_steps"], pipe.asked["guidance_scale"]) == (7, 2.5)
    assert pipe.asked["negative_prompt"] == used


@pytest.fixture(scope="module")
def pipe(tiny_fp16: Path) -> Any:
    """A real pipeline, and a tiny one."""
    import wanstore

    return wanstore.load(tiny_fp16, sealed=False, device="cpu", dtype={"vae": "float32"})


@pytest.mark.parametrize(("until", "forwards"), [(1.0, 8), (0.5, 6), (0.3, 6), (0.01, 5)])
def test_guidance_ends_where_the_preset_says(pipe: Any, until: float, forwards: int) -> None:
    """Two forwards a step with it, one without; the steps of its share are rounded up. The next clip has it again."""
    seen: list[int] = []
    hook = pipe.transformer.register_forward_hook(lambda *_: seen.append(1))
    try:
        generate(pipe, "a cat", attrs.evolve(SMALL, guidance_until=until))
    finally:
        hook.remove()
    assert len(seen) == forwards


@pytest.mark.parametrize("cache", ["first_block=1000", "sea=1000"])
def test_a_cache_works_for_one_clip(pipe: Any, cache: str) -> None:
    """With such a threshold it is used whenever it may be. It is off after the clip, also after one that failed."""
    before = generate(pipe, "a cat", SMALL)
    cached = generate(pipe, "a cat", attrs.evolve(SMALL, cache=cache))
    assert not pipe.transformer.is_cache_enabled and not np.array_equal(cached, before)
    with pytest.raises(ValueError, match="prompt"):
        generate(pipe, 3, attrs.evolve(SMALL, cache=cache))  # type: ignore[arg-type]
    assert np.array_equal(generate(pipe, "a cat", SMALL), before)


def test_a_clip_takes_an_older_ones_place(tmp_path: Path) -> None:
    """Folders are made; nothing else is left there."""
    clip = tmp_path / "deep/er/clip.mp4"
    for count in (5, 3):
        write_clip(FRAMES[:count], clip)
        assert frames_of(clip) == count and list(clip.parent.iterdir()) == [clip]


def test_a_write_that_fails_leaves_the_older_clip(tmp_path: Path) -> None:
    """And nothing beside it; the error names the clip and a next step."""
    clip = tmp_path / "clip.mp4"
    clip.write_text("old")
    with files_of_at_most(1000), pytest.raises(WanstoreError, match=r"clip.mp4: File too large\. .*ulimit"):
        write_clip(FRAMES, clip)
    assert clip.read_text() == "old" and list(tmp_path.iterdir()) == [clip]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    """Clips may lie on another disk."""
    (tmp_path / "disk").mkdir()
    link, clip = tmp_path / "clip.mp4", tmp_path / "disk/clip.mp4"
    link.symlink_to(clip)
    write_clip(FRAMES, link)
    assert link.is_symlink() and frames_of(clip) == 5


def write_some(path: Path) -> None:
    write_clip(FRAMES, path)


@pytest.mark.parametrize("use", [check_place, write_some])
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/proc/x.mp4", r"/proc/x.mp4: No such file"),
        ("/dev/null", r"/dev/null is not a regular file"),
        (f"{__file__}/x.mp4", r"File exists\. Choose another path"),
        (f"{__file__}/x/y.mp4", r"Not a directory\. Check the path"),
        ("x" * 300 + "/clip.mp4", r"File name too long\. Choose a shorter path"),
    ],
)
def test_a_place_where_no_clip_can_be_is_told(place: str, told: str, use: Callable[[Path], None]) -> None:
    """Before a clip is made, and when it is written. A device is left as it is."""
    with pytest.raises(WanstoreError, match=told):
        use(Path(place))


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    """Its folder is made, and a clip that is there stays."""
    clip = tmp_path / "folder/clip.mp4"
    check_place(clip)
    assert list(clip.parent.iterdir()) == []
    clip.write_text("old")
    check_place(clip)
    assert clip.read_text() == "old" and list(clip.parent.iterdir()) == [clip]
