"""Skeletons: models without weights, built without touching what other threads see."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from wanstore.building._meta_parameters import MetaParameters
from wanstore.building._skeleton import build_skeleton
from wanstore.errors import DamagedError
from wanstore.testing.tiny_wan import TEXT_ENCODER, TRANSFORMER, VAE

CONFIGS = {"transformer": TRANSFORMER, "text_encoder": TEXT_ENCODER, "vae": VAE}


def test_other_threads_see_nothing_of_a_build() -> None:
    """Their tensors and layers are float32, in memory, and initialised, at every moment."""
    stop = threading.Event()
    wrong: list[str] = []
    probes = 0

    def probe() -> None:
        nonlocal probes
        while not stop.is_set():
            layer = torch.nn.Linear(2, 2)
            seen = (torch.tensor(0.5).dtype, torch.ones(1).dtype, layer.weight.dtype, str(layer.weight.device))
            if seen != (torch.float32, torch.float32, torch.float32, "cpu") or not layer.weight.abs().sum() > 0:
                wrong.append(str(seen))
            probes += 1

    threads = [threading.Thread(target=probe) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        for component, config in CONFIGS.items():
            build_skeleton(component, config, "")
    stop.set()
    for thread in threads:
        thread.join()
    assert probes > 100 and wrong == []


@pytest.mark.skipif(sys.platform != "linux", reason="torch has other threads there")
def test_a_build_is_done_by_its_own_thread_alone() -> None:
    """torch's other threads have nothing to do; whoever else computes has as many as before, and so has the builder."""
    before, seen = torch.get_num_threads(), []
    with MetaParameters(torch.float16):
        elsewhere = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        elsewhere.start()
        elsewhere.join()
        assert (torch.get_num_threads(), seen) == (1, [before])
    assert torch.get_num_threads() == before


def test_threads_build_side_by_side() -> None:
    """In different dtypes, none waits for the others or takes theirs."""
    built: dict[str, torch.dtype] = {}

    def build(dtype: str) -> None:
        for _ in range(5):
            built[dtype] = next(build_skeleton("vae", VAE, "", dtype).parameters()).dtype

    threads = [threading.Thread(target=build, args=(dtype,)) for dtype in ("float16", "float32")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == {"float16": torch.float16, "float32": torch.float32}


@pytest.mark.parametrize("component", CONFIGS)
def test_a_skeleton_has_no_parameter_in_memory_and_every_buffer(component: str) -> None:
    """And the caller's random numbers go on as if it had not been built."""
    state = torch.get_rng_state()
    model = build_skeleton(component, CONFIGS[component], "")
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_config_that_describes_no_model_is_damage() -> None:
    """Named with the reason."""
    with pytest.raises(DamagedError, match=r"vae/config\.json is not a config of AutoencoderKLWan"):
        build_skeleton("vae", {**VAE, "dim_mult": []}, "")
