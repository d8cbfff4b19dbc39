"""The sections of a report's page, each a list of Markdown lines; an empty one where there is nothing to say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from wanstore.benchmarking.cost import Prices, clip_cost
from wanstore.benchmarking.estimate import (
    DATA_SHEET_TFLOPS,
    DENOISING_SHARE,
    clip_seconds,
    denoising_petaflop,
    tflops_of,
)
from wanstore.benchmarking.page._markdown import (
    NONE,
    clip_of,
    gib,
    measured_on,
    number,
    result_of,
    spread_of,
    table,
    usd,
)
from wanstore.benchmarking.plan import minutes
from wanstore.benchmarking.report import BenchmarkReport
from wanstore.benchmarking.rows import PHASES, BenchmarkRow, phase_seconds
from wanstore.benchmarking.safe import MEMORY_SHARE, needed_gib
from wanstore.memory._plan import OUTPUT
from wanstore.memory._plan import PHASES as MEMORY_PHASES
from wanstore.presets import PRESETS

_PRODUCTION = {preset.clip for preset in PRESETS.values()}
"""The sizes that estimates are for: those of a tiny pipeline say nothing."""

NO_PICTURES = "No chart was drawn: matplotlib is not installed. `pip install 'wanstore[bench]'` brings it."


def opening(report: BenchmarkReport, json_name: str) -> list[str]:
    """What this page is, and what the figures are of."""
    environment = report.environment
    links = f"[How to read this page](benchmarking.md). The same figures for programs: [{json_name}]({json_name})."
    lines = ["# Benchmarks", "", "<!-- Written by `wanstore bench`: run it again instead of editing this page. -->", ""]
    lines += [f"What each preset costs. {measured_on(environment)} {links}", ""]
    if not report.trained:
        lines += [
            '!!! warning "Random weights"',
            f"    The weights: {environment.weights}. Time and memory do not depend on their values. What clips",
            "    show does: it would be noise, so there are no pictures, and no scores but against a reference.",
            "",
        ]
    return lines


def safe(report: BenchmarkReport) -> list[str]:
    """The safe preset and why."""
    rule = (
        "What degraded mode falls back to: the cheapest preset that worked, passed every check of its frames, and "
        f"needs at most {MEMORY_SHARE:.0%} of the memory."
    )
    reasons = [f"- {reason}" for reason in report.safe.reasons]
    return [f"## Safe preset: {report.safe.preset or 'none'}", "", rule, "", *reasons, ""]


def results(report: BenchmarkReport, prices: Prices) -> list[str]:
    """The table of everything. Six columns are what a page holds without scrolling."""
    gpu = prices.gpu_of(report.environment.device)
    rows = []
    for row in report.rows:
        about = "≈ " if row.extrapolated else ""
        clip, step, dollars, peak = NONE, NONE, NONE, NONE
        if row.worked:
            clip = f"{about}{number(row.seconds_p50)}" + (f" ({spread_of(row)})" if len(row.rounds) > 1 else "")
            step = number(row.step_seconds)
            dollars = about + usd(clip_cost(prices, gpu, row.seconds_p50, None).warm) if gpu else NONE
        if row.memory:
            peak = f"{gib(row.memory.allocated_gib)} / {gib(row.memory.device_gib)}"
        rows.append([f"**{row.preset.name}**", result_of(row), clip, step, peak, dollars])
    head = ["preset", "result", "#s a clip, p50 (spread)", "#s a step", "#peak GiB, torch / device", "#$ a clip"]
    notes = [f"- **{row.preset.name}**: {'; '.join(_notes(row))}." for row in report.rows]
    note = "≈ is extrapolated: fewer steps were measured, and the rest is counted at their median."
    extrapolated = any(row.worked and row.extrapolated for row in report.rows)
    return ["## Results", "", *table(head, rows), "", *([note, ""] if extrapolated else []), *notes, ""]


def phases(report: BenchmarkReport, pictures: Mapping[str, str] | None) -> list[str]:
    """Where the time goes."""
    rows = []
    for row in report.rows:
        if row.worked:
            seconds = phase_seconds(row)
            cells = {phase: number(seconds[phase]) for phase in (*PHASES, "rest")}
            cells["denoising"] += f" ({seconds['denoising'] / row.seconds_p50:.0%})"
            rows.append([row.preset.name, *cells.values()])
    if not rows:
        return []
    note = (
        "Medians of the rounds. Writing is the encoding of the frames as a video file. "
        "The rest is the time between the phases, measuring included."
    )
    chart = _chart(pictures, "time", "Seconds of a clip by phase, for each preset")
    head = ["preset", *(f"#{phase} s" for phase in (*PHASES, "rest"))]
    return ["## Where the time goes", "", *chart, *table(head, rows), "", note, ""]


def compiled(report: BenchmarkReport) -> list[str]:
    """Compiled blocks beside eager ones."""
    rows = []
    for row in report.rows:
        found = row.compiled
        if row.worked and found and found.eager_step_seconds:
            rows.append([
                row.preset.name,
                number(found.eager_step_seconds),
                number(row.step_seconds),
                f"{found.eager_step_seconds / row.step_seconds:.2f}×",
                number(row.compiled_saves_seconds),
                number(found.loading_seconds),
                str(row.compiled_pays_from or NONE),
                number(found.scores.get("psnr")),
                number(found.scores.get("ssim"), below_one=4),
            ])  # fmt: skip
    if not rows:
        return []
    head = ["preset", "#eager s a step", "#compiled s a step", "#ratio", "#saves s a clip", "#s longer to load",
            "#pays from clip", "#PSNR dB", "#SSIM"]  # fmt: skip
    note = (
        "All other figures of these presets are with compiled blocks. In the same process a clip was made with them "
        "and without, of the same seed and at most ten denoising steps: PSNR and SSIM are between the two."
    )
    return ["## Compiled blocks", "", *table(head, rows), "", note, ""]


def lossy(report: BenchmarkReport) -> list[str]:
    """What lossy presets save, and how much of the clip they change."""
    rows = []
    for row in report.rows:
        if row.worked and (found := row.lossless):
            guidance = f"guidance until {row.preset.guidance_until:.0%}" if row.preset.guidance_until < 1 else ""
            rows.append([
                row.preset.name,
                ", ".join(filter(None, (row.preset.cache, guidance))),
                number(found.seconds),
                number(row.seconds_p50),
                f"{found.seconds / row.seconds_p50:.2f}×",
                number(found.scores.get("psnr")),
                number(found.scores.get("ssim"), below_one=4),
            ])  # fmt: skip
    if not rows:
        return []
    head = ["preset", "saves by", "#s a clip without", "#s a clip", "#ratio", "#PSNR dB", "#SSIM"]
    note = (
        "PSNR and SSIM are between the two clips, of the same prompt and seed. They say how much a clip changes, not "
        "whether it is still good: that takes trained weights, several prompts, and eyes. How often a cache is used "
        "depends on the weights too, so with random ones its time says nothing."
    )
    return ["## Presets that change the clip", "", *table(head, rows), "", note, ""]


def memory(report: BenchmarkReport, pictures: Mapping[str, str] | None) -> list[str]:
    """Peaks, and what they are held against."""
    rows = []
    for row in report.rows:
        if row.memory:
            peaks = (row.memory.allocated_gib, row.memory.reserved_gib, row.memory.device_gib)
            until = "" if row.worked else f", until {row.status}"
            rows.append([row.preset.name, *(gib(peak) for peak in peaks), gib(needed_gib(row.memory)) + until])
    if not rows:
        return []
    cap = report.environment.memory_cap_gib
    limit = f"torch was held to {cap:g} GiB" if cap is not None else "torch could have all of it"
    note = (
        f"The device has {report.environment.memory_gib:.1f} GiB; {limit}. Handed out and reserved are peaks of "
        "torch's allocator. Needed is what was handed out, and what the device held besides the allocator: what it "
        "reserved beyond that is given back when memory is short."
    )
    head = ["preset", "#handed out GiB", "#reserved GiB", "#in use on the device GiB", "#needed GiB"]
    chart = _chart(pictures, "memory", "Peak memory of each preset, with the limits as lines")
    return ["## Memory", "", *chart, *table(head, rows), "", note, "", *_memory_by_phase(report)]


def costs(report: BenchmarkReport, prices: Prices) -> list[str]:
    """Dollars, with and without the cold start."""
    worked = [row for row in report.rows if row.worked]
    if not worked:
        return []
    gpu = prices.gpu_of(report.environment.device)
    if gpu is None:
        return ["## Cost", "", f"The price table has no {report.environment.device}.", ""]
    rows = []
    for row in worked:
        cost = clip_cost(prices, gpu, row.seconds_p50, row.load_seconds)
        dollars = [usd(cost.warm), usd(cost.amortised), usd(cost.with_cold_start)]
        rows.append([row.preset.name, number(row.load_seconds), *dollars])
    shared = f"#$, cold start shared by {prices.clips_per_start} clips"
    head = ["preset", "#cold start s", "#$, container is up", shared, "#$, cold start for one clip"]
    note = (
        f"One {gpu}, {prices.cores:g} cores and {prices.memory_gib:g} GiB of memory, by {prices.source}, noted on "
        f"{prices.date}. The cold start is counted from the start of the process to a ready pipeline; placing and "
        "starting a container comes on top."
    )
    return ["## Cost", "", *table(head, rows), "", note, ""]


def quality(report: BenchmarkReport) -> list[str]:
    """What the checks of the frames found: a column for each preset, as there are more scores than presets."""
    checked = {row.preset.name: row.quality for row in report.rows if row.quality}
    if not checked:
        return []
    scores = dict.fromkeys(name for found in checked.values() for name in found.scores)
    rows = [["checks", *("failed" if found.failures else "passed" for found in checked.values())]]
    for score in scores:
        figures = (number(found.scores.get(score), below_one=4) for found in checked.values())
        rows.append([score.replace("_", " "), *figures])
    head = ["", *(f"#{name}" for name in checked)]
    failures = [
        f"- **{name}** failed: {', '.join(found.failures)}." for name, found in checked.items() if found.failures
    ]
    missing = dict.fromkeys(
        f"- {score.replace('_', ' ')} is missing: {why}."
        for found in checked.values()
        for score, why in found.missing.items()
    )
    note = "What the checks and scores mean: [Quality notes](benchmarking.md#quality-notes)."
    return ["## Quality", "", *table(head, rows), "", note, "", *failures, *missing, ""]


def clips(report: BenchmarkReport) -> list[str]:
    """A contact sheet of each clip."""
    lines = []
    for row in report.rows:
        for picture in row.frames:
            whole = f": [the clip]({row.video})" if row.video else ""
            lines += [f"**{row.preset.name}**{whole}", "", f"![Frames of {row.preset.name}]({picture})", ""]
    return ["## Pictures", "", *lines] if lines else []


def loads(report: BenchmarkReport) -> list[str]:
    """The time until a pipeline is ready, and until its first clip; and the energy of a clip."""
    rows = [
        [row.preset.name, number(row.load_seconds), number(row.first_clip_seconds), _kilojoules(row)]
        for row in report.rows
        if any(one is not None for one in (row.load_seconds, row.first_clip_seconds, row.energy_joules))
    ]
    if not rows:
        return []
    note = "Load and first clip are counted from the start of the process, imports included."
    if any(row.extrapolated for row in report.rows):
        note += " First clips and energy are extrapolated to the preset's steps as clips are."
    head = ["preset", "#load s", "#first clip s", "#energy of a clip, kJ"]
    return ["## Load, first clip, energy", "", *table(head, rows), "", note, ""]


def cold_starts(report: BenchmarkReport) -> list[str]:
    """From a call to a ready pipeline in a fresh container, by form of snapshot."""
    rows = []
    for form in report.cold_starts:
        counted = form.counted
        ends = sorted(one.seconds for one in counted)
        spread = f" ({number(ends[0])} to {number(ends[-1])})" if len(ends) > 1 else ""
        rows.append(
            [
                form.form,
                str(len(counted)),
                number(form.seconds) + spread,
                number(statistics.median(one.placing for one in counted) if counted else None),
                number(statistics.median(one.loading for one in counted) if counted else None),
                number(form.gigabytes_a_second),
                form.verdict,
            ]
        )
    if not rows:
        told = (
            "Not measured here: it takes a class that is deployed on Modal, where a container starts for a call. There:"
        )
        return ["## Cold starts", "", told, "", "```", "modal run examples/benchmark_modal.py --cold-start", "```", ""]
    head = [
        "snapshot",
        "#starts",
        "#s to ready, median (spread)",
        "#placing s",
        "#loading s",
        "#weights GB/s",
        "verdict",
    ]
    note = (
        "Each start is a call of a deployed class that has no container. Placing is what Modal does until the "
        "container's own code goes on: finding a GPU, the image, the restore; loading is what wanstore does after it. "
        "Starts that made the snapshot do not count. The clocks are those of two containers, which may differ a little."
    )
    failures = [f"- **{form.form}**: {reason}." for form in report.cold_starts for reason in form.failures]
    return ["## Cold starts", "", *table(head, rows), "", note, "", *failures, *([""] if failures else [])]


def estimates(report: BenchmarkReport, prices: Prices) -> list[str]:
    """What an L4 would take, by arithmetic; for clips of the package's sizes, and where no L4 was measured."""
    if prices.gpu_of(report.environment.device) == "L4":
        return []
    rows = []
    for row in report.rows:
        seconds = clip_seconds(row.preset, "L4")
        if seconds and row.preset.clip in _PRODUCTION:
            petaflop = denoising_petaflop(row.preset)
            reached = petaflop * 1000 / (row.step_seconds * row.preset.steps) if row.worked else None
            dollars = " to ".join(usd(prices.usd(end, gpu="L4")) for end in seconds)
            time = " to ".join(minutes(end) for end in seconds)
            rows.append([row.preset.name, number(petaflop), number(reached), time, dollars])
    tflops = tflops_of("L4")
    if not rows or not tflops:
        return []
    head = ["preset", "#PFLOP a clip", "#TFLOP/s reached where measured", "#minutes on an L4", "#$ a clip on an L4"]
    slow, quick = tflops
    assumptions = [
        "- the arithmetic is that of Wan 2.1 1.3B's denoising, from the transformer's shapes, every step twice for",
        f"  guidance; text encoding, decoding and writing are the other {1 - DENOISING_SHARE:.0%} of a clip;",
        f"- an L4 reaches {slow:.0f} to {quick:.0f} TFLOP/s of its data sheet's {DATA_SHEET_TFLOPS['L4']:.0f} (dense",
        "  fp16);",
        "- speed of memory, clock under load and attention backend are not looked at, nor whether it fits in memory;",
        f"- the container has {prices.cores:g} cores and {prices.memory_gib:g} GiB, and is up.",
    ]
    note = "**Nothing here was measured on an L4.** It is arithmetic, and assumes:"
    return ["## An L4, by arithmetic: not measured", "", *table(head, rows), "", note, "", *assumptions, ""]


def how(report: BenchmarkReport) -> list[str]:
    """The environment and the command."""
    environment = report.environment
    cap = environment.memory_cap_gib
    facts = {
        "device": f"{environment.device}, {environment.memory_gib:.1f} GiB",
        "memory": f"torch held to {cap:g} GiB, to stand in for a GPU of that size" if cap is not None else "all of it",
        "machine": environment.machine,
        "measured at": environment.measured_at,
        "weights": environment.weights,
        "model": environment.model,
        "dtype": environment.dtype and f"{environment.dtype}, the others float16",
        "memory plan": environment.memory and f"{environment.memory}, for every preset",
        "clips measured": ", ".join(f"{row.preset.name}: {len(row.rounds)}" for row in report.rows if row.worked),
        "attention": "; ".join(f"{row.preset.name}: {_attention(row)}" for row in report.rows if row.attention),
        "versions": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
    }
    lines = ["## How it was measured", "", *table(["", ""], [[k, v] for k, v in facts.items() if v]), ""]
    return [*lines, "```", environment.command, "```", ""] if environment.command else lines


def _chart(pictures: Mapping[str, str] | None, name: str, alt: str) -> list[str]:
    if pictures is None:
        return [NO_PICTURES, ""]
    return [f"![{alt}]({pictures[name]})", ""] if name in pictures else []


def _memory_by_phase(report: BenchmarkReport) -> list[str]:
    """What memory plans predict, beside what was measured."""
    rows = []
    for row in report.rows:
        if row.predicted_gib or row.phase_peaks_gib:
            peaks = [
                f"{gib(row.predicted_gib.get(phase))} / {gib(row.phase_peaks_gib.get(phase))}"
                for phase in (*MEMORY_PHASES, OUTPUT)
            ]
            rows.append([row.preset.name, row.memory_plan or NONE, *peaks])
    if not rows:
        return []
    head = ["preset", "plan", *(f"#{phase.replace('_', ' ')} GiB" for phase in (*MEMORY_PHASES, OUTPUT))]
    note = (
        "By phase: the peak that the plan predicts / the peak that torch's allocator counted, the highest of all "
        "clips. Output is what follows the decode: frames are copied to the caller, and the text encoder comes back."
    )
    return [*table(head, rows), "", note, ""]


def _notes(row: BenchmarkRow) -> list[str]:
    reason = "" if row.worked else row.reason
    plan = f"memory plan: {row.memory_plan}" if row.memory_plan else ""
    eager = f"no compiled blocks: {row.compiled.reason}" if row.compiled and row.compiled.reason else ""
    lossy = "changes the clip to save time: look at clips before you use it" if row.preset.lossy else ""
    recipe = f"guidance {row.preset.guidance_scale:g}, flow shift {row.preset.flow_shift:g}"
    return [
        text.rstrip(".") for text in (clip_of(row.preset), recipe, lossy, plan, eager, row.preset.notes, reason) if text
    ]


def _kilojoules(row: BenchmarkRow) -> str:
    return number(row.energy_joules / 1000 if row.energy_joules is not None else None)


def _attention(row: BenchmarkRow) -> str:
    """The backend, and what it was chosen from."""
    compared = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in row.attention_seconds.items())
    return f"{row.attention}, the fastest (ms: {compared})" if compared else row.attention
