"""What clips cost, by the package's prices and by a file's; and what an L4 would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from wanstore.benchmarking.cost import PRICES, clip_cost, load_prices
from wanstore.errors import InvalidSettingError, NotFoundError

OWN = 'date = "2027-01-01"\nsource = "our contract"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(text)
    return path


def test_the_packages_prices_say_when_and_whose_they_are() -> None:
    """They age."""
    assert PRICES.date == "2026-11-24" and "Modal" in PRICES.source


def test_a_container_costs_its_gpu_its_cores_and_its_memory() -> None:
    """By the second."""
    assert PRICES.usd(1000, gpu="L4", cores=2, memory_gib=16) == pytest.approx(0.222 + 2 * 0.0131 + 16 * 0.00222)
    assert PRICES.usd(1000, cores=4, memory_gib=0) == pytest.approx(0.0524)


def test_a_gpu_without_a_price_is_told_with_those_there_are() -> None:
    """Nothing is charged at zero by mistake."""
    with pytest.raises(NotFoundError, match="L4"):
        PRICES.usd(1, gpu="RTX 4090")


def test_a_cold_start_is_charged_whole_and_shared() -> None:
    """Three figures: a container that is up, a share of its start, all of its start for one clip."""
    cost = clip_cost(PRICES, "L4", 100.0, 40.0)
    a_second = PRICES.usd(1, gpu="L4")
    assert cost.warm == pytest.approx(100 * a_second)
    assert cost.with_cold_start == pytest.approx(140 * a_second)
    assert cost.amortised == pytest.approx((100 + 40 / PRICES.clips_per_start) * a_second)


def test_without_the_seconds_of_a_cold_start_it_is_not_made_up() -> None:
    """Only the clip is charged."""
    cost = clip_cost(PRICES, "L4", 100.0, None)
    assert cost.warm > 0 and cost.with_cold_start is None and cost.amortised is None


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", None),
        ("x86_64 CPU", None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(device: str, name: str | None) -> None:
    """One like it is not taken for it."""
    assert PRICES.gpu_of(device) == name


def test_a_file_overrides_prices_and_adds_gpus(tmp_path: Path) -> None:
    """The rest stays."""
    prices = load_prices(written(tmp_path, OWN + "[gpu_second]\nL4 = 0.0001\nA100 = 0.002\n[container]\ncores = 8"))
    assert (prices.date, prices.source, prices.cores) == ("2027-01-01", "our contract", 8)
    assert prices.gpu_second["L4"] == 0.0001 and prices.gpu_second["T4"] == PRICES.gpu_second["T4"]
    assert prices.gpu_of("NVIDIA A100-SXM4-64GB") == "A100" and prices.gpu_second["A100"] == 0.002
    assert prices.gpu_of("NVIDIA A100-SXM4-80GB") == "A100-80GB"
    assert load_prices(None) == PRICES


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ('source = "x"', "date", "missing"),
        ('date = 2027-01-01\nsource = "x"', "date", "not text"),
        ('date = "2027-01-01"', "source", "missing"),
        (OWN + "[gpu_hour]\nL4 = 1", "gpu_hour", "not a table of prices"),
        (OWN + "second = 1", "second", "not a table of prices"),
        (OWN + "[second]\ngpu = 1", "gpu", "no key"),
        (OWN + '[gpu_second]\nL4 = "1"', "L4", "not a number"),
        (OWN + "[gpu_second]\nL4 = -1", "L4", "not a number from 0"),
        (OWN + "[gpu_second]\nL4 = nan", "L4", "not a number from 0"),
        (OWN + "[second]\ncore = true", "core", "not a number"),
        (OWN + "[container]\nclips_per_start = 0", "clips_per_start", "from 1"),
        (OWN + "[container]\nclips_per_start = 1.5", "clips_per_start", "from 1"),
    ],
)
def test_a_mistake_in_prices_is_told_by_file_and_key(tmp_path: Path, text: str, key: str, why: str) -> None:
    """A price is never guessed."""
    with pytest.raises(InvalidSettingError, match=why) as caught:
        load_prices(written(tmp_path, text))
    assert "prices.toml" in caught.value.what and key in caught.value.what
