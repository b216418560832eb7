import importlib.util
import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from autoq.config.events import Events, Progress, TrainingEvents
from autoq.config.policy import Policy
from autoq.config.space_file import bundled_space, load_space
from autoq.config.spec import Record, StudySpec, TrialSpec
from autoq.report import progress
from autoq.study.study import space_facts

SPEC = StudySpec(
    trial=TrialSpec(model="srgan"),
    space=load_space(bundled_space("srgan"), space_facts("srgan", "openvino-cpu")).to_dict(),
    objectives=("size", "latency", "psnr"),
    budget=50,
)


def record(number: int, size: float, psnr: float, name: str | None = None, state: str = "complete") -> Record:
    return Record(
        number=None if name else number, name=name, source="baseline" if name else "trial", state=state,
        policy=Policy(()).to_dict(), label="16 16/16/32 16/16 16/16", values={"size": size, "latency": 100.0 + number, "psnr": psnr},
        reason=None if state == "complete" else "training diverged",
    )  # fmt: skip


def running_view(points: int) -> progress.View:
    view = progress.View()
    view.begin(Path("studies/srgan-x4-20260101-101112"), SPEC, [record(0, 6e6, 29.4, "float"), record(0, 1.5e6, 29.3, "8/8/8")])
    for number in range(points):
        view.started(f"trial {number}", "8 8/8/8 8/8 8/8")
        view.finished(record(number, 1.4e6 - 1e4 * number, 29.2 - 0.01 * number))
    view.finished(record(points, 1e6, 0.0, state="failed"))
    view.started("trial 98", "16 16/16/32 16/16 16/16")
    view.started("trial 99", "16 16/16/32 16/16 16/16")
    return view


def drawn(view: progress.View, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(view.render(width, height, view.started_at + 187))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12)])
@pytest.mark.parametrize("points", [0, 3, 60])
def test_the_view_fits_the_terminal(width: int, height: int, points: int) -> None:
    lines = drawn(running_view(points), width, height)
    assert all(len(line.rstrip()) <= width for line in lines)
    assert len(lines) <= height


def test_the_view_counts_and_shows_the_front() -> None:
    lines = drawn(running_view(3), 100, 40)
    assert lines[0].startswith("srgan x4 on openvino-cpu, study studies/srgan-x4-20260101-101112")
    assert lines[1].startswith("3 done  2 running  0 stopped  1 failed  of 50   3:07")
    assert lines[2].startswith("hypervolume 0.")
    assert "baselines alone 0." in lines[2]
    text = "\n".join(lines)
    assert "trial 2" in text
    assert "1348 KiB" in text, "1.38e6 bytes"
    assert "29.18 dB" in text
    assert "running: trial 98 (16 16/16/32 16/16 16/16), trial 99" in text


def test_a_point_that_is_not_faster_than_float_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = drawn(running_view(1), 120, 40)
    assert sum("ms (not faster)" in line for line in lines) == 2, "8/8/8 and trial 0 take as long as the float network"
    (row,) = [line for line in lines if line.strip().startswith("float")]
    assert "not faster" not in row


def test_what_does_not_fit_is_counted() -> None:
    assert any(line.startswith("and ") and line.rstrip().endswith(" more") for line in drawn(running_view(60), 80, 24))


def test_remaining_time_follows_the_pace_of_what_has_ended() -> None:
    ends = [0.0, 10.0, 20.0, 30.0]
    assert progress.remaining(ends, left=4, now=35.0) == 4 * 10 - 5
    assert progress.remaining(ends, left=0, now=99.0) == 0
    assert progress.remaining(ends[:3], left=4, now=25.0) is None
    slow_start = [0.0, *(100.0 + step for step in range(40))]
    assert progress.remaining(slow_start, left=10, now=139.0) == 10


def test_sparkline_spans_its_values() -> None:
    assert progress.sparkline([0, 3.5, 7]) == "▁▅█"
    assert progress.sparkline([2, 2]) == "▁▁"


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (187.9, "3:07"), (3727, "1:02:07")])
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_without_a_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(quiet=False) as events:
        assert isinstance(events, progress.Lines)
        events.begin(Path("studies/s"), SPEC, [])
        events.finished(record(4, 1.5e6, 29.3))
        events.finished(record(5, 1e6, 0.0, state="failed"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "study studies/s",
        "  trial 4  16 16/16/32 16/16 16/16    size 1465 KiB, latency 104.0 ms, psnr 29.30 dB",
        "  trial 5  16 16/16/32 16/16 16/16    failed: training diverged",
    ]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress(quiet=True) as events:
        events.begin(Path("studies/s"), SPEC, [])
        events.phase("preparing")
        events.note("something")
        events.finished(record(4, 1.5e6, 29.3))
    assert capsys.readouterr() == ("", "")


def test_the_logger_gets_progress_where_no_events_are_passed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "autoq"), progress.listening(None) as events:
        events.phase("preparing the float network")
        events.begin(Path("studies/s"), SPEC, [])
        events.started("trial 4", "16 16/16/32 16/16 16/16")
        events.finished(record(4, 1.5e6, 29.3))
        events.note("quality is psnr")
        events.replicated("trial 4", 1, 3)
    assert {(entry.name, entry.levelname) for entry in caplog.records} == {("autoq", "INFO")}
    assert caplog.messages == [
        "preparing the float network",
        "study studies/s",
        "  trial 4  16 16/16/32 16/16 16/16    size 1465 KiB, latency 104.0 ms, psnr 29.30 dB",
        "quality is psnr",
        "trial 4: replication 1 of 3",
    ]
    assert capsys.readouterr() == ("", "")


def test_the_logger_gets_the_validations_of_a_float_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "autoq"), progress.listening_to_training(None) as events:
        events.begin(0, 2000)
        events.stepped(1)
        events.validated(Progress(step=1000, steps=2000, loss=0.0123456, value=29.876, seconds=187.9))
    assert caplog.messages == ["step 1,000 of 2,000, 3:07: psnr 29.88 dB, loss 0.01235"]


def test_events_of_the_caller_are_used_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    mine, training = Events(), TrainingEvents()
    with progress.listening(mine) as events, progress.listening_to_training(training) as of_training:
        assert (events, of_training) == (mine, training)


def test_an_application_without_logging_sees_no_output() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("autoq").handlers)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for a notebook: rich takes this process for one. Returns the texts that its cells show."""
    cells: list[str] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda _, text: cells.append(text))
    return cells


def test_a_notebook_without_widgets_shows_lines(notebook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with progress.listening(None) as events, progress.listening_to_training(None) as training:
        events.phase("preparing the float network")
        training.validated(Progress(step=1, steps=2, loss=0.5, value=30.0, seconds=1.0))
    assert [text.strip() for text in notebook] == ["preparing the float network", "step 1 of 2, 0:01: psnr 30.00 dB, loss 0.50000"]


def test_a_notebook_with_widgets_redraws(notebook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ipywidgets" or None)
    assert progress.redraws(Console())
