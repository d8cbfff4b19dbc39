"""What a load cost, phase by phase, and what bound it."""

from __future__ import annotations

import html
import json

import attrs

from wanstore._formats._json import from_json, to_json
from wanstore.errors import DamagedError
from wanstore.transfer._record import TransferRecord


@attrs.frozen
class Phase:
    """One step of a load; `size_bytes` is what it moved, 0 when it moved next to nothing.

    `began_seconds` counts from the load's beginning: weights move while libraries are imported, so phases overlap.
    """

    name: str
    seconds: float
    size_bytes: int = 0
    began_seconds: float = 0.0


@attrs.frozen
class Attention:
    """The attention backend: which was asked for, which is used, and why they differ if they do."""

    asked: str
    used: str
    reason: str = ""

    def __str__(self) -> str:
        return f"attention {self.used}" + (f", not {self.asked}: {self.reason}" if self.reason else "")


@attrs.frozen
class Compiled:
    """Whether the transformer's blocks run compiled: what was asked for, for which inputs, and why not if not.

    `shapes` are clips at once × tokens of each, as `1x20280`, for which the store had functions. `as_they_come` says
    whether others are compiled when a clip needs them.
    """

    asked: str
    shapes: tuple[str, ...] = ()
    as_they_come: bool = False
    reason: str = ""

    @property
    def used(self) -> bool:
        """Whether any blocks run compiled, or may come to."""
        return bool(self.shapes) or self.as_they_come

    def __str__(self) -> str:
        if not self.used:
            return f"no compiled blocks: {self.reason}"
        sizes = [f"for {', '.join(self.shapes)} tokens"] if self.shapes else []
        return f"blocks compiled {', others '.join([*sizes, *(['as they come'] if self.as_they_come else [])])}"


@attrs.frozen
class Ready:
    """How a pipeline was set up once it was on its device; None for what was not asked for, or done before."""

    attention: Attention | None = None
    compiled: Compiled | None = None


@attrs.frozen
class LoadReport:
    """Where a load's time went. `seconds` is the whole call, `size_bytes` the weight files' tensor data.

    `bound_by` names what the call spent most of its time on: a phase, or what the transfer of the weights was
    held up by where the call had to wait for it.
    """

    folder: str
    device: str
    seconds: float
    size_bytes: int
    phases: tuple[Phase, ...]
    bound_by: str
    transfer: TransferRecord | None = None
    attention: Attention | None = None
    compiled: Compiled | None = None

    def phase(self, name: str) -> Phase:
        """The phase of that name; raises `KeyError` when the load had none."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps(to_json(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the report") -> LoadReport:
        """A report from its JSON, or from what `wanstore generate --json` printed. Raises `DamagedError`."""
        try:
            document = json.loads(text)
            return from_json(document.get("load", document), cls)
        except (ValueError, AttributeError, RecursionError) as error:
            raise DamagedError(
                f"{where} is not a load report ({error})", "Save one with wanstore generate --json"
            ) from error

    @property
    def remarks(self) -> list[str]:
        """What there is to say of how weights moved, of attention and of compiled blocks."""
        return [
            *([f"weights by {self.transfer.way}"] if self.transfer and self.transfer.way else []),
            *([str(self.attention)] if self.attention else []),
            *([str(self.compiled)] if self.compiled else []),
        ]

    def lines(self) -> list[str]:
        """The report as a table, one string a line: phase, when it began, seconds, GB and GB/s."""
        rows = [*self.phases, Phase("total", self.seconds, self.size_bytes)]
        return [
            f"{self.folder} on {self.device}",
            f"{'phase':<10} {'from':>8} {'seconds':>8} {'GB':>8} {'GB/s':>7}",
            *(_row(phase) for phase in rows),
            f"bound by {self.bound_by}",
            *self.remarks,
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return f"<pre>{html.escape(str(self))}</pre>"


def _row(phase: Phase) -> str:
    gigabytes = phase.size_bytes / 1e9
    rate = gigabytes / phase.seconds if phase.seconds else 0.0
    read = f" {gigabytes:>8.3f} {rate:>7.2f}" if phase.size_bytes else ""
    return f"{phase.name:<10} {phase.began_seconds:>8.3f} {phase.seconds:>8.3f}{read}"
