"""Two reports of the same presets on the same machine, compared: what is slower, what takes more memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.benchmarking.safe import needed_gib


@attrs.frozen
class Threshold:
    """A rise counts when it is more than `percent` and more than `absolute`, in the figure's unit."""

    percent: float
    absolute: float


CLIP_SECONDS = Threshold(percent=5, absolute=0.2)
"""A clip's median moves by 1 to 3 percent between runs, with the GPU's clock and temperature."""
STEP_SECONDS = Threshold(percent=5, absolute=0.005)
MEMORY_GIB = Threshold(percent=2, absolute=0.1)
"""The same work asks for the same memory; what differs are the allocator's and the libraries' workspaces."""


@attrs.frozen
class Figure:
    """One figure of one preset, before and now."""

    preset: str
    name: str
    unit: str
    old: float
    new: float
    threshold: Threshold

    @property
    def percent(self) -> float:
        """The change in percent of the old value."""
        return (self.new - self.old) / self.old * 100 if self.old else 0.0

    @property
    def verdict(self) -> str:
        """`worse`, `better`, or `same` within the threshold."""
        change = self.new - self.old
        if abs(self.percent) <= self.threshold.percent or abs(change) <= self.threshold.absolute:
            return "same"
        return "worse" if change > 0 else "better"

    def __str__(self) -> str:
        change = self.new - self.old
        return (
            f"{self.preset}: {self.name} {self.old:.3f} → {self.new:.3f} {self.unit} "
            f"({self.percent:+.1f} %, {change:+.3f} {self.unit}), {self.verdict}"
        )


@attrs.frozen
class Comparison:
    """What comparing two reports found.

    Attributes:
        figures: the figures that could be compared.
        flags: what was not compared, and why.
        broken: what worked before and does not work now.
        mended: what works again.
    """

    figures: tuple[Figure, ...] = ()
    flags: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[str, ...]:
        """What is worse now, a line each."""
        return (*self.broken, *(str(figure) for figure in self.figures if figure.verdict == "worse"))

    def lines(self) -> list[str]:
        """The comparison as text; the last line counts the regressions."""
        count = len(self.regressions)
        verdict = f"{count} regression{'' if count == 1 else 's'}" if count else "no regressions"
        compared = f" in {len(self.figures)} figures" if self.figures else "; no figure could be compared"
        return [*self.flags, *self.broken, *self.mended, *map(str, self.figures), verdict + compared]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON: `regressions`, `mended` and `flags` as lines, `figures` with their verdicts."""
        figures = [
            {
                "preset": one.preset, "name": one.name, "unit": one.unit, "old": one.old, "new": one.new,
                "percent": one.percent, "verdict": one.verdict,
            }
            for one in self.figures
        ]  # fmt: skip
        lines = {"regressions": self.regressions, "mended": self.mended, "flags": self.flags}
        return {**{key: list(found) for key, found in lines.items()}, "figures": figures}


def compare(old: BenchmarkReport, new: BenchmarkReport) -> Comparison:
    """What of `old` is worse in `new`.

    Figures of different machines, or of a preset measured by another recipe, say nothing about a change of the code:
    they are flagged and not compared.
    """
    machines = list(_differences(_machine(old.environment), _machine(new.environment)))
    if machines:
        return Comparison(flags=(f"not compared, the machines differ: {', '.join(machines)}",))
    before = {row.preset.name: row for row in old.rows}
    now = {row.preset.name: row for row in new.rows}
    parts = [_compare_rows(before[name], row, old, new) for name, row in now.items() if name in before]
    alone = [f"{name}: not compared, only in the old report" for name in before if name not in now]
    alone += [f"{name}: not compared, only in the new report" for name in now if name not in before]
    versions = [f"versions differ: {text}" for text in _differences(*_versions(old, new))]
    return Comparison(
        figures=tuple(figure for part in parts for figure in part.figures),
        flags=(*versions, *alone, *(flag for part in parts for flag in part.flags)),
        broken=tuple(line for part in parts for line in part.broken),
        mended=tuple(line for part in parts for line in part.mended),
    )


def _compare_rows(old: BenchmarkRow, new: BenchmarkRow, before: BenchmarkReport, now: BenchmarkReport) -> Comparison:
    name = new.preset.name
    recipes = list(_differences(_recipe(old, before.environment), _recipe(new, now.environment)))
    if recipes:
        return Comparison(flags=(f"{name}: not compared, the recipe differs: {', '.join(recipes)}",))
    if old.worked and not new.worked:
        return Comparison(broken=(f"{name}: worked, and now {new.status} ({new.reason})",))
    if not old.worked:
        return Comparison(mended=(f"{name}: was {old.status}, and works now",) if new.worked else ())
    failures = set(new.quality.failures if new.quality else ()) - set(old.quality.failures if old.quality else ())
    broken = tuple(f"{name}: passed before, and now {failure}" for failure in sorted(failures))
    measured = [
        Figure(name, "clip, p50", "s", old.seconds_p50, new.seconds_p50, CLIP_SECONDS),
        Figure(name, "step", "s", old.step_seconds, new.step_seconds, STEP_SECONDS),
    ]
    if old.memory and new.memory:
        peaks = needed_gib(old.memory), needed_gib(new.memory)
        measured.append(Figure(name, "peak memory", "GiB", *peaks, MEMORY_GIB))
    return Comparison(figures=tuple(measured), broken=broken)


def _machine(environment: Environment) -> dict[str, object]:
    return {"device": environment.device, "machine": environment.machine}


def _recipe(row: BenchmarkRow, environment: Environment) -> dict[str, object]:
    preset = row.preset
    recipe: dict[str, object] = {
        "size": f"{preset.width}×{preset.height}",
        "frames": preset.frames,
        "steps": preset.steps,
        "guidance scale": preset.guidance_scale,
        "flow shift": preset.flow_shift,
        "negative prompt": preset.negative_prompt,
        "cache": preset.cache,
        "guidance until": preset.guidance_until,
        "memory cap": environment.memory_cap_gib,
        "weights": environment.weights,
        "dtype": environment.dtype,
        "memory": environment.memory,
    }
    if row.worked:
        recipe |= {"steps measured": len(row.rounds[0].steps), "attention": row.attention}
        recipe |= {"compiled blocks": "yes" if row.compiled_saves_seconds is not None else ""}
    return recipe


def _versions(old: BenchmarkReport, new: BenchmarkReport) -> tuple[dict[str, object], dict[str, object]]:
    return dict(old.environment.versions), dict(new.environment.versions)


def _differences(old: dict[str, object], new: dict[str, object]) -> Iterator[str]:
    """The keys that both have, with different values."""
    for key in old:
        if key in new and old[key] != new[key]:
            yield f"{key} {old[key] or 'none'} → {new[key] or 'none'}"
