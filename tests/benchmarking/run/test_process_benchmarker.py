"""Presets in processes of their own: real ones, really killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import psutil
import pytest

import wanstore
from wanstore._workers import Workers
from wanstore.benchmarking.measure._reference_clips import hash_clip, save_clip
from wanstore.benchmarking.report import BenchmarkReport, Environment
from wanstore.benchmarking.rows import BenchmarkRow
from wanstore.benchmarking.run import _process_benchmarker
from wanstore.benchmarking.run._process_benchmarker import ALL, ProcessBenchmarker, step_weight
from wanstore.choices import ComponentName, DtypeName
from wanstore.errors import AccessError, AlreadyExistsError, NotFoundError, NotSupportedError, WanstoreError
from wanstore.presets import PRESETS, Preset
from wanstore.testing import BenchmarkerTests

FLOAT32: dict[ComponentName, DtypeName] = {"vae": "float32"}
"""A CPU takes eight times as long to decode in float16."""
FIRST, SECOND = (Preset(name, width=32, height=32, frames=5, steps=4) for name in ("first", "second"))


class Heard:
    """A `Progress` that remembers, and that may do something when a clip begins."""

    def __init__(self, at_clip: Any = None) -> None:
        self.messages: list[str] = []
        self.total = self.done = 0
        self._at_clip = at_clip

    def start(self, task: str, total: int, unit: str = "bytes") -> None:
        if task == ALL:
            self.total = total
        if self._at_clip and task.startswith("generate"):
            self._at_clip(task)

    def advance(self, task: str, amount: int) -> None:
        self.done += amount if task == ALL else 0

    def finish(self, task: str) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)


class StopsAfterTheFirst(Heard):
    """Ctrl-C once it hears of the first preset's row."""

    def message(self, text: str) -> None:
        if text.startswith("first"):
            raise KeyboardInterrupt


@pytest.mark.slow
class TestProcessBenchmarker(BenchmarkerTests):
    """Everything that any benchmarker must do, a process for each preset: it takes a minute."""

    @pytest.fixture
    def benchmarker(self, sealed: Path) -> ProcessBenchmarker:
        return ProcessBenchmarker(sealed, "cpu", warmup=0, dtype=FLOAT32)


def workers() -> Sequence[psutil.Process]:
    """The process that has the imports done, and one that does a job, in this order."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "wanstore.benchmarking.run._worker" in child.cmdline()]


@pytest.fixture(scope="module")
def prepared() -> Iterator[Workers]:
    with Workers(_process_benchmarker._WORKER) as workers:
        yield workers


@pytest.fixture
def imports_done(prepared: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs find the imports done that a run begins with, which take longer than its presets do here."""
    monkeypatch.setattr(_process_benchmarker, "Workers", lambda _: nullcontext(prepared))


def test_a_row_tells_of_the_whole_life_of_its_process(sealed: Path, tmp_path: Path) -> None:
    """Loading and the first clip from the process's start; what weights, and that random ones have no pictures."""
    heard = Heard()
    benchmarker = ProcessBenchmarker(
        sealed,
        "cpu",
        dtype=FLOAT32,
        steps={"first": 2},
        report=tmp_path / "site/page.md",
        command="wanstore bench w",
        attention="auto",
    )
    report = benchmarker.run([FIRST], progress=heard)
    (row,) = report.rows
    assert row.worked and row.extrapolated and len(row.rounds) == 1
    assert row.load_seconds and row.first_clip_seconds and row.first_clip_seconds > row.load_seconds
    assert row.attention == "native" and row.memory
    assert not row.frames and not row.video and row.quality is None, "clips of random weights are noise"
    assert report.environment.command == "wanstore bench w" and "torch" in report.environment.versions
    assert report.environment.weights.startswith("RANDOM weights")
    assert heard.total == heard.done > 0, "the progress of the whole comes to its end"
    assert not list((tmp_path / "site").glob("*.partial.json")), "nothing is left to go on with"


@pytest.mark.usefixtures("imports_done")
def test_a_crash_is_a_row_and_is_tried_again(sealed: Path, tmp_path: Path) -> None:
    """The kernel's out-of-memory killer sends the same signal; the other preset is not measured a second time."""
    benchmarker = ProcessBenchmarker(sealed, "cpu", dtype=FLOAT32, warmup=0, report=tmp_path / "page.md")

    def kill(task: str) -> None:
        if task == "generate first":
            workers()[-1].send_signal(signal.SIGKILL)

    report = benchmarker.run([FIRST, SECOND], progress=Heard(kill))
    assert [row.status for row in report.rows] == ["crash", "ok"] and "SIGKILL" in report.rows[0].reason

    heard = Heard()
    again = benchmarker.run([FIRST, SECOND], progress=heard)
    assert [row.status for row in again.rows] == ["ok", "ok"]
    assert again.rows[1] == report.rows[1]
    assert "second was measured before" in heard.messages[0]


@pytest.mark.usefixtures("imports_done")
@pytest.mark.parametrize(
    ("field", "other", "told", "refused"),
    [
        ("dtype", FLOAT32 | {"transformer": "float32"}, "transformer=float32, vae=float32", {"vae": "bfloat16"}),
        ("memory", "offload", "offload", "little"),
    ],
)
def test_another_dtype_or_plan_is_another_measurement(
    sealed: Path, tmp_path: Path, field: str, other: Any, told: str, refused: Any
) -> None:
    """A stopped run's row doesn't stand for it, and the report tells it. One that can't be is refused at once."""
    benchmarker = ProcessBenchmarker(sealed, "cpu", dtype=FLOAT32, warmup=0, report=tmp_path / "page.md")

    assert len(benchmarker.run([FIRST, SECOND], progress=StopsAfterTheFirst()).rows) == 1
    heard = Heard()
    report = attrs.evolve(benchmarker, **{field: other}).run([FIRST], progress=heard)
    assert report.rows[0].worked and getattr(report.environment, field) == told
    assert report.rows[0].memory_plan == ("text_encoder offloaded" if field == "memory" else "")
    assert not any("measured before" in message for message in heard.messages)
    with pytest.raises(NotSupportedError, match="Choose"):
        attrs.evolve(benchmarker, **{field: refused})


@pytest.mark.usefixtures("imports_done")
def test_a_preset_whose_clip_is_gone_or_another_runs_is_measured_again(sealed: Path, tmp_path: Path) -> None:
    """A stopped run's row stands only with the clip that it was measured on, and with the same reference."""
    kept, other = tmp_path / "kept", tmp_path / "other"
    benchmarker = ProcessBenchmarker(
        sealed, "cpu", dtype=FLOAT32, warmup=0, report=tmp_path / "page.md", keep_clips=kept
    )

    def measured(benchmarker: ProcessBenchmarker) -> BenchmarkRow | None:
        """The first preset's row; None if it was measured before."""
        try:
            (row,) = benchmarker.run([FIRST, SECOND], progress=StopsAfterTheFirst()).rows
        except KeyboardInterrupt:
            return None
        return row

    row = measured(benchmarker)
    assert row and row.clip_sha256 == hash_clip(kept, FIRST) and not measured(benchmarker)
    save_clip(np.zeros((5, 32, 32, 3)), kept, FIRST)
    assert measured(benchmarker), "the clip there was another's"

    save_clip(np.zeros((5, 32, 32, 3)), other, FIRST)
    compared = attrs.evolve(benchmarker, reference=other)
    row = measured(compared)
    assert row and row.quality and row.quality.scores["psnr"] < 30 and not measured(compared)
    save_clip(np.ones((5, 32, 32, 3)), other, FIRST)
    assert measured(compared), "it was compared with another clip"
    with pytest.raises(NotSupportedError, match="would replace what they are compared with"):
        attrs.evolve(benchmarker, reference=kept)


def test_a_preset_that_takes_too_long_is_stopped(sealed: Path) -> None:
    """Its process is gone with it; no report path is needed."""
    before = workers()
    endless = Preset("endless", width=32, height=32, frames=5, steps=100_000)
    report = ProcessBenchmarker(sealed, "cpu", warmup=0, timeout_seconds=1.5).run([endless])
    assert [(row.status, row.reason) for row in report.rows] == [("timeout", "not done after 1.5 s")]
    assert workers() == before


@pytest.mark.usefixtures("imports_done")
def test_what_no_preset_could_do_is_an_error(sealed: Path) -> None:
    """Not a row for each of them."""
    with pytest.raises(WanstoreError, match="no attention backend 'magic'"):
        ProcessBenchmarker(sealed, "cpu", attention="magic").run([FIRST, SECOND])


def test_a_folder_without_a_seal_is_an_error(tiny_fp16: Path) -> None:
    """Figures of weights that nobody vouches for help no one."""
    with pytest.raises(NotFoundError, match="no sealed pipeline"):
        ProcessBenchmarker(tiny_fp16).run([FIRST])


@pytest.mark.parametrize(
    ("output", "path", "told"),
    [
        ("report", "/proc/page.md", "/proc"),
        ("report", "file/page.md", "file"),
        ("report", "page.md", "page.json"),
        ("keep_clips", "file/clips", "clips"),
        ("keep_clips", "/proc/clips", "/proc/clips"),
    ],
)
def test_outputs_that_cannot_be_written_are_told_before_anything_is_measured(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, path: str, told: str
) -> None:
    """No process is started, nothing is left behind."""
    monkeypatch.setattr(ProcessBenchmarker, "_describe", lambda *_: pytest.fail("a process was started"))
    (tmp_path / "file").touch()
    (tmp_path / "page.json").mkdir()
    written: dict[str, Any] = {output: tmp_path / path}
    with pytest.raises(AccessError, match=rf"{told} cannot be written .*Name another place"):
        ProcessBenchmarker(sealed, "cpu", **written).run([FIRST])
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "page.json"]


def test_outputs_that_are_there_are_left_as_they_are_until_there_are_new_ones(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that can't measure costs nobody the last one's page."""
    page = tmp_path / "page.md"
    page.write_text("the last one")
    monkeypatch.setattr(ProcessBenchmarker, "_describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ProcessBenchmarker(sealed, "cpu", report=page).run([FIRST])
    assert page.read_text() == "the last one" and list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("change", [{"device": "NVIDIA L4"}, {"memory_cap_gib": 22.0}, {"weights": "w: other/model"}])
def test_a_page_of_another_measurement_is_replaced_only_if_asked(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Its figures may have taken hours. One of the same device, limit and weights is replaced."""
    machine = Environment("cpu", 1.0, "today")
    monkeypatch.setattr(ProcessBenchmarker, "_describe", lambda *_: machine)
    benchmarker = ProcessBenchmarker(sealed, "cpu", report=tmp_path / "page.md")
    with Workers("") as workers:
        _, environment = benchmarker._check(workers)
    old = tmp_path / "page.json"
    old.write_text(BenchmarkReport(attrs.evolve(environment, measured_at="long ago"), ()).to_json())
    benchmarker.check()
    old.write_text(BenchmarkReport(attrs.evolve(environment, **change), ()).to_json())
    with pytest.raises(
        AlreadyExistsError, match=r"page\.json would be lost: it is of .*--out.*--replace-page"
    ) as refused:
        benchmarker.run([FIRST])
    assert all(str(value).removesuffix(".0") in str(refused.value) for value in change.values())
    attrs.evolve(benchmarker, replace_page=True).check()


def test_a_json_that_is_no_report_is_not_replaced(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page called package.md is not to cost a package.json."""
    monkeypatch.setattr(ProcessBenchmarker, "_describe", lambda *_: Environment("cpu", 1.0, "today"))
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(AlreadyExistsError, match="of another program"):
        ProcessBenchmarker(sealed, "cpu", report=tmp_path / "package.md").check()


def test_the_time_left_knows_that_large_clips_take_longer() -> None:
    """An H100 took 0.67, 1.33, 5.20 and 17.3 s for a step of the four presets."""
    weights = [step_weight(preset) / step_weight(PRESETS["480p/3s"]) for preset in PRESETS.values()]
    assert weights == pytest.approx([1, 1.33 / 0.67, 5.20 / 0.67, 17.3 / 0.67], rel=0.05)


def test_compiled_blocks_are_measured_beside_eager_ones(compiled_store: Path, tmp_path: Path) -> None:
    """All figures are with them; the same clip once more without says what they save and change."""
    heard = Heard()
    report = wanstore.bench(
        "w", store=compiled_store, presets=[FIRST, attrs.evolve(SECOND, width=64)], steps=2, device="cpu",
        compile="cached", report=tmp_path / "page.md", dtype=FLOAT32, progress=heard,
    )  # fmt: skip
    first, second = (row.compiled for row in report.rows)
    assert first and first.eager_step_seconds and first.loading_seconds > 0 and not first.reason
    assert first.scores["psnr"] > 50 and first.scores["ssim"] > 0.99
    assert (
        second and second.reason == "there is no whole function for 1x16 tokens" and second.eager_step_seconds is None
    )
    assert heard.total == heard.done, "the clip without them is counted"
