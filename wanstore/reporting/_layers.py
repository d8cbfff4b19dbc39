"""What the conversion did to each layer: the records of its tensors, summed up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import attrs

from wanstore.manifest import TensorRecord, relative_rms_error


@attrs.frozen
class Layer:
    """`relative_error` is the root mean square of the differences, over that of the source's values."""

    name: str
    relative_error: float
    flushed_to_zero: int
    overflows: int


def layers(records: Iterable[TensorRecord]) -> list[Layer]:
    """The layers of a component, in their order in the model as far as names tell it."""
    found: dict[str, list[TensorRecord]] = {}
    for record in records:
        found.setdefault(layer_of(record.name), []).append(record)
    return [_layer(name, found[name]) for name in sorted(found, key=_by_number)]


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to: its name as far as the first number, or else all but the parameter.

    `blocks.3.attn1.to_q.weight` is of `blocks.3`, and `proj_out.weight` of `proj_out`.
    """
    numbered = re.match(r"(?:.*?\.)?\d+(?=\.)", tensor)
    return numbered[0] if numbered else tensor.rpartition(".")[0] or tensor


def _layer(name: str, records: Sequence[TensorRecord]) -> Layer:
    flushed = sum(record.flushed_to_zero for record in records)
    return Layer(name, relative_rms_error(records), flushed, sum(record.overflows for record in records))


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts `blocks.2` before `blocks.10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
