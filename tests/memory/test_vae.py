"""The leaner decode gives diffusers' own frames, and leaves all else of the VAE alone."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode

from wanstore.memory import _tiles as tiles
from wanstore.memory._estimate import MemoryEstimate
from wanstore.memory._plan import MemoryPlan
from wanstore.memory._vae import make_lean
from wanstore.presets import ClipSize
from wanstore.testing.tiny_wan import VAE

pytestmark = pytest.mark.usefixtures("no_gradients")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@pytest.fixture(scope="module")
def no_gradients() -> Iterator[None]:
    """As in a pipeline's call."""
    with torch.no_grad():
        yield


def build(dtype: torch.dtype = torch.float32, base_dim: int = 8) -> Any:
    """diffusers' own, random weights; the same for the same arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKLWan.from_config({**VAE, "base_dim": base_dim}).to(dtype).eval()


def both(dtype: torch.dtype = torch.float32, base_dim: int = 8) -> tuple[Any, Any]:
    """Two of the same weights: diffusers' own, and a lean one."""
    lean = build(dtype, base_dim)
    make_lean(lean)
    return build(dtype, base_dim), lean


def latents(frames: int = 2, height: int = 2, width: int = 4, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(frames))


# --- the frames


@BOTH
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 2), (2, 2), (1, 5)])
def test_in_one_piece_every_bit_is_diffusers_own(dtype: torch.dtype, batch: int, frames: int) -> None:
    """Whatever the number of frames: the first has nothing cached before it, the second one frame, then two."""
    plain, lean = both(dtype)
    z = latents(frames, batch=batch).to(dtype)
    expected, made = plain.decode(z), lean.decode(z)
    assert type(made) is type(expected)
    assert made.sample.dtype == dtype and made.sample.shape == (batch, 3, 4 * frames - 3, 16, 32)
    assert torch.equal(made.sample, expected.sample)
    assert torch.equal(lean.decode(z, return_dict=False)[0], expected.sample), "a second time"


def test_a_frame_higher_than_a_strip_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm and activation go strip by strip."""
    from wanstore.memory import _vae

    monkeypatch.setattr(_vae, "_STRIP_ROWS", 5)
    plain, lean = both()
    assert torch.equal(lean.decode(latents()).sample, plain.decode(latents()).sample)


@pytest.fixture(scope="module")
def lean() -> Any:
    """In float64, where rounding is far below what a neighbour contributes: kernels for other sizes sum otherwise."""
    with torch.no_grad():
        return both(torch.float64, base_dim=4)[1]


def of_tiles(lean: Any, z: torch.Tensor, count: int) -> torch.Tensor:
    lean.tiles = count
    sample: torch.Tensor = lean.decode(z).sample
    return sample


@pytest.mark.parametrize(("count", "frames", "height", "width"), [(2, 2, 4, 44), (4, 1, 30, 30)])
def test_tiles_leave_no_seam(lean: Any, count: int, frames: int, height: int, width: int) -> None:
    """Every pixel has all that it depends on."""
    z = latents(frames, height, width).double()
    assert all(tile.pixels < height * width for tile in tiles.cut(height, width, count))
    assert (of_tiles(lean, z, count) - of_tiles(lean, z, 1)).abs().max() < 1e-12


def test_in_float32_tiles_differ_from_diffusers_own_by_rounding() -> None:
    """By a few of its last digits."""
    plain, lean = both(base_dim=4)
    z = latents(1, 4, 44)
    assert (of_tiles(lean, z, 2) - plain.decode(z).sample).abs().max() < 1e-4


@pytest.mark.parametrize(("halo", "least"), [(4, 1e-2), (12, 1e-10)])
def test_with_less_around_them_tiles_would_differ(
    lean: Any, monkeypatch: pytest.MonkeyPatch, halo: int, least: float
) -> None:
    """So the comparison above can fail, and the surroundings are as narrow as they can be."""
    z = latents(2, 4, 44).double()
    expected = of_tiles(lean, z, 1)
    monkeypatch.setattr(tiles, "HALO", halo)
    assert (of_tiles(lean, z, 2) - expected).abs().max() > least


def test_outside_no_grad_the_frames_are_the_same() -> None:
    """What autograd keeps must not be in the way of what is written in place."""
    plain, lean = both()
    with torch.enable_grad():
        assert torch.equal(lean.decode(latents()).sample, plain.decode(latents()).sample)


def test_diffusers_own_tiles_still_work() -> None:
    """They are asked for by a method of the VAE, and go through the lean modules."""
    plain, lean = both()
    z = latents(1, 12, 12)
    for vae in (plain, lean):
        vae.enable_tiling(64, 64, 48, 48)
    assert torch.equal(lean.decode(z).sample, plain.decode(z).sample)


# --- all else


def test_parameters_config_and_names_stay(tmp_path: Path) -> None:
    """What is saved cannot be told from what diffusers' own saves."""
    plain, lean = both()
    assert isinstance(lean, AutoencoderKLWan)
    assert type(lean).__name__ == "AutoencoderKLWan"
    assert dict(lean.config) == dict(plain.config)
    assert [name for name, _ in lean.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for name, vae in (("plain", plain), ("lean", lean)):
        vae.save_pretrained(tmp_path / name)
    saved = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("plain", "lean")]
    assert saved[0] == saved[1]


def test_encoding_is_not_touched() -> None:
    """Its residual blocks are of the same class, and stay it."""
    plain, lean = both()
    frames = torch.randn(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0))
    lean.decode(latents())
    assert torch.equal(lean.encode(frames).latent_dist.mean, plain.encode(frames).latent_dist.mean)
    assert {type(module) for module in lean.encoder.modules()} == {type(module) for module in plain.encoder.modules()}


def test_the_latents_are_not_changed() -> None:
    """What is freed on the way is the decode's own."""
    _, lean = both()
    z = latents()
    lean.decode(z)
    assert torch.equal(z, latents())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("module", ["conv_in", "mid_block", "up_blocks.1", "up_blocks.3.resnets.2.norm2", "norm_out"])
def test_after_a_decode_that_failed_the_next_is_right(module: str, count: int) -> None:
    """Nothing is cached from one to the next: in whichever module it ended, here with the second latent frame."""
    plain, lean = both()
    lean.tiles = count
    runs: list[int] = []

    def fail_later(*_: Any) -> None:
        runs.append(1)
        if len(runs) > 3:
            raise RuntimeError("out of order")

    hook = lean.decoder.get_submodule(module).register_forward_pre_hook(fail_later)
    with pytest.raises(RuntimeError, match="out of order"):
        lean.decode(latents(5))
    hook.remove()
    assert torch.equal(lean.decode(latents()).sample, plain.decode(latents()).sample)


# --- memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that still live, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.peak: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor):
                storage = made.untyped_storage()
                self._made[storage._cdata] = weakref.ref(storage)
        del storage
        # Asked anew each time: a storage's bytes may be freed before it is.
        living = {key: found for key, ref in self._made.items() if (found := ref())}
        self._made = {key: self._made[key] for key in living}
        self.peak = max(self.peak, sum(found.nbytes() for found in living.values()))
        return result


def peak_bytes(vae: Any, z: torch.Tensor) -> int:
    """What a decode has allocated at most, but for weights and the convolutions' own workspace."""
    with LiveBytes() as live:
        vae.decode(z)
    peak: int = live.peak
    return peak


def test_at_full_size_it_takes_much_less_memory_and_what_is_predicted() -> None:
    """The published VAE at 480p, without data: operations on the meta device allocate in name only."""
    plain, lean = (build_without_data() for _ in range(2))
    make_lean(lean)
    z = torch.empty(1, 16, 3, 60, 104, dtype=torch.float16, device="meta")
    own = peak_bytes(plain, z)
    estimate = MemoryEstimate(
        {"text_encoder": 0, "transformer": 0, "vae": 0},
        1,
        1,
        1,
        1,
        vae_channels=96,
        item_bytes={"transformer": 2, "vae": 2},
    )
    for count, share in ((1, 0.85), (2, 0.6)):
        lean.tiles = count
        held = peak_bytes(lean, z)
        predicted = estimate.peaks(MemoryPlan(tiles=count), ClipSize(832, 480, 9))["decoding"]
        assert held < share * own
        assert held < predicted < 1.5 * held, "the workspace of a GPU's convolutions comes on top"


def build_without_data() -> Any:
    with torch.device("meta"):
        return AutoencoderKLWan.from_config({**VAE, "base_dim": 96}).to(torch.float16).eval()
