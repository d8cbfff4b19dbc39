"""What a clip costs, from its seconds and the prices in `prices.toml`.

Imports little, so that programs on a machine with nothing but `modal` can use the prices too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wanstore._formats._toml import read_toml
from wanstore.errors import InvalidSettingError, NotFoundError


@attrs.frozen
class Prices:
    """US dollars, and the container that a clip is made in. `gpu_second` goes by the GPUs' names at Modal.

    Of the Volumes of a workspace the first `volume_free_gib` cost nothing.
    """

    date: str
    source: str
    core_second: float
    gib_second: float
    gpu_second: Mapping[str, float]
    volume_gib_month: float
    volume_free_gib: float
    cores: float
    memory_gib: float
    clips_per_start: int

    def usd(
        self, seconds: float, *, gpu: str = "", cores: float | None = None, memory_gib: float | None = None
    ) -> float:
        """What a container costs for that long; `cores` and `memory_gib` default to those of the table.

        Without `gpu` it has none. Raises `NotFoundError` for one whose price is not known.
        """
        if gpu and gpu not in self.gpu_second:
            raise NotFoundError(f"There is no price for {gpu}", f"Use one of: {', '.join(self.gpu_second)}")
        cores = self.cores if cores is None else cores
        memory_gib = self.memory_gib if memory_gib is None else memory_gib
        a_second = cores * self.core_second + memory_gib * self.gib_second + (self.gpu_second[gpu] if gpu else 0.0)
        return seconds * a_second

    def gpu_of(self, device: str) -> str | None:
        """The table's name of a GPU that its driver calls `device`: A100-80GB for `NVIDIA A100-SXM4-80GB`."""
        words = set(re.split(r"[\s-]+", device))
        words |= {word.removesuffix("G") for word in words}  # Modal's A10 is the driver's A10G
        found = [name for name in self.gpu_second if words.issuperset(name.split("-"))]
        return max(found, key=len, default=None)


@attrs.frozen
class ClipCost:
    """US dollars: a clip in a running container, one with its own cold start, one with a share of a cold start."""

    warm: float
    with_cold_start: float | None
    amortised: float | None


def clip_cost(prices: Prices, gpu: str, seconds: float, cold_start_seconds: float | None) -> ClipCost:
    """What a clip of that many seconds costs; without the seconds of a cold start, only while the container is up."""
    warm = prices.usd(seconds, gpu=gpu)
    if cold_start_seconds is None:
        return ClipCost(warm, None, None)
    start = prices.usd(cold_start_seconds, gpu=gpu)
    return ClipCost(warm, warm + start, warm + start / prices.clips_per_start)


def load_prices(path: Path | None) -> Prices:
    """The package's prices, overridden and added to by the TOML file at `path`, which has the same form.

    Such a file needs a `date` and a `source`. Raises `NotFoundError` when there is no such file, and
    `InvalidSettingError`, which names file, table and key.
    """
    tables = read_toml(Path(__file__).with_name("prices.toml"))
    if path is not None:
        tables = _merged(tables, read_toml(path), path)
    return Prices(
        date=tables["date"],
        source=tables["source"],
        core_second=tables["second"]["core"],
        gib_second=tables["second"]["memory_gib"],
        gpu_second=tables["gpu_second"],
        volume_gib_month=tables["month"]["volume_gib"],
        volume_free_gib=tables["month"]["volume_free_gib"],
        cores=tables["container"]["cores"],
        memory_gib=tables["container"]["memory_gib"],
        clips_per_start=tables["container"]["clips_per_start"],
    )


def _merged(tables: dict[str, Any], changes: dict[str, Any], path: Path) -> dict[str, Any]:
    for key in ("date", "source"):
        if not isinstance(changes.get(key), str):
            raise InvalidSettingError(f"{path}: {key} is missing, or not text", f'Add {key} = "…" to the file')
    merged = {**tables, "date": changes.pop("date"), "source": changes.pop("source")}
    for table, values in changes.items():
        if not isinstance(tables.get(table), dict) or not isinstance(values, dict):
            known = ", ".join(name for name, value in tables.items() if isinstance(value, dict))
            raise InvalidSettingError(f"{path}: {table!r} is not a table of prices", f"Use {known}")
        for key, value in values.items():
            _check(f"{path}, table {table!r}", key, value, () if table == "gpu_second" else tuple(tables[table]))
        merged[table] = {**tables[table], **values}
    return merged


def _check(where: str, key: str, value: object, known: tuple[str, ...]) -> None:
    if known and key not in known:
        raise InvalidSettingError(f"{where}: there is no key {key!r}", f"Use {', '.join(known)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= float(str(value)) < math.inf:
        raise InvalidSettingError(f"{where}: {key} is {value!r}, not a number from 0", "Correct the file")
    if key == "clips_per_start" and not (isinstance(value, int) and value >= 1):
        raise InvalidSettingError(f"{where}: {key} is {value!r}, not a whole number from 1", "Correct the file")


PRICES: Prices = load_prices(None)
"""Those of the package."""
