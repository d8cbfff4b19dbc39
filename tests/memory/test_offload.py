"""A pipeline's components go and come back, whole, or stay away and can be asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from wanstore.errors import DamagedError
from wanstore.loading._load import load_folder as load
from wanstore.memory._offload import Offloader
from wanstore.transfer._readers import FileReader

MODELS = ("text_encoder", "transformer", "vae")


@pytest.fixture
def pipe(tiny_copy: Path) -> Any:
    """Of an unsealed folder: there is no manifest to hold it to."""
    return load(tiny_copy, device="cpu", sealed=False)


@pytest.fixture
def offloader(pipe: Any) -> Offloader:
    return Offloader({name: getattr(pipe, name) for name in MODELS}, pipe._origin)


def there(pipe: Any) -> set[str]:
    return {name for name in MODELS if all(parameter.numel() for parameter in getattr(pipe, name).parameters())}


def values(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value.clone() for name in MODELS for key, value in getattr(pipe, name).state_dict().items()
    }


@pytest.mark.parametrize("from_host", [False, True])
def test_what_went_comes_back_with_every_bit(pipe: Any, offloader: Offloader, from_host: bool) -> None:
    """From the folder, or from host memory."""
    before = values(pipe)
    for _ in range(2):
        offloader.offload_all_but(["vae"], from_host=from_host)
        assert (there(pipe), offloader.has_offloaded) == ({"vae"}, True)
        offloader.bring_back(MODELS)
        assert (there(pipe), offloader.has_offloaded) == (set(MODELS), False)
        after = values(pipe)
        assert after.keys() == before.keys()
        assert all(
            torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
        )


def test_what_is_away_knows_its_device_and_dtype(pipe: Any, offloader: Offloader) -> None:
    """It is where the pipeline works, which asks it."""
    offloader.offload_all_but([])
    assert pipe.device == torch.device("cpu")
    assert pipe.transformer.dtype == torch.float16
    assert pipe.text_encoder.device == torch.device("cpu")


def test_weights_are_counted_there_or_not(pipe: Any, offloader: Offloader) -> None:
    """As bytes on the device, where some are wider than in the files."""
    counted = offloader.weight_bytes
    for name in MODELS:
        parameters = getattr(pipe, name).parameters()
        assert counted[name] == sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    offloader.offload_all_but([])
    assert offloader.weight_bytes == counted


def test_what_comes_back_is_read_through_the_page_cache(
    pipe: Any, offloader: Offloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is still there the next time: it is not opened past it, cached or not."""
    monkeypatch.setattr("wanstore.transfer._readers.cached_spans", lambda _, spans: [False] * len(spans))
    monkeypatch.setattr(FileReader, "_open_direct", lambda *_: pytest.fail("opened past the page cache"))
    offloader.offload_all_but([])
    offloader.bring_back(MODELS)


def test_what_fails_to_come_back_stays_away_and_can_be_asked_for_again(
    pipe: Any, offloader: Offloader, tiny_copy: Path
) -> None:
    """What came before it is there."""
    before, path = values(pipe), tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    offloader.offload_all_but([])
    path.write_bytes(whole[:1000])
    with pytest.raises(DamagedError, match="vae"):
        offloader.bring_back(MODELS)
    assert "vae" not in there(pipe)
    path.write_bytes(whole)
    offloader.bring_back(MODELS)
    assert all(torch.equal(value, before[name]) for name, value in values(pipe).items())


def test_what_is_on_its_way_can_be_dropped(pipe: Any, offloader: Offloader) -> None:
    """It is away as before."""
    offloader.offload_all_but(["text_encoder"])
    offloader.start_return(MODELS)
    offloader.start_return(MODELS)
    offloader.cancel_return()
    assert there(pipe) == {"text_encoder"}
    offloader.bring_back(MODELS)
    assert there(pipe) == set(MODELS)
