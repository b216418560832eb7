"""Progress of a search or a training: a live view on a terminal or in a notebook, lines elsewhere, log records for Python.

Commands print it to standard error. A Python caller without events of its own gets the live view in a notebook, and records of
the logger `autoq` at INFO elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from autoq.config.events import Events, Progress, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.spec import Record, StudySpec
from autoq.study.results import Results, faster_than_float, in_words, point_name, shown

LOGGER = logging.getLogger("autoq")

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 30
"""Values of the hypervolume's history that are drawn."""

PACE_OVER = 20
"""Trials, the last ones, that the remaining time is estimated from."""

FRAMES_PER_SECOND = 2
ROWS_AROUND_FRONT = 9
"""Lines of the view that are not rows of the front."""


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Events]:
    """Events that print their progress to standard error, unless `quiet`."""
    if quiet:
        yield Events()
    else:
        with _shown_on(Console(stderr=True, highlight=False)) as events:
            yield events


@contextlib.contextmanager
def listening(events: Events | None) -> Iterator[Events]:
    """The caller's events. Without any, a notebook shows progress; elsewhere the logger `autoq` gets it."""
    if events is not None:
        yield events
    elif (console := Console(highlight=False)).is_jupyter:
        with _shown_on(console) as shown_events:
            yield shown_events
    else:
        yield Lines(LOGGER.info)


@contextlib.contextmanager
def _shown_on(console: Console) -> Iterator[Events]:
    """Events that a console shows: a live view where it can redraw, else lines."""
    if not redraws(console):
        yield Lines(_printer(console))
        return
    view = View()
    with Live(
        get_renderable=lambda: view.render(console.width, console.height, time.monotonic()),
        console=console,
        transient=True,
        refresh_per_second=FRAMES_PER_SECOND,
        vertical_overflow="crop",
    ) as live:
        view.console = live.console
        yield view


def redraws(console: Console) -> bool:
    """Whether a console can replace what it shows: a terminal, or a notebook with ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def _printer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, soft_wrap=True)


class Lines(Events):
    """A line for every phase, note and finished trial.

    Args:
        say: Takes a line, without its newline.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.spec: StudySpec | None = None

    def phase(self, text: str) -> None:
        self.say(text)

    def note(self, text: str) -> None:
        self.say(text)

    def begin(self, folder: Path, spec: StudySpec, records: Sequence[Record]) -> None:
        super().begin(folder, spec, records)
        self.spec = spec
        self.say(f"study {folder}{f': {len(records)} earlier results' if records else ''}")

    def finished(self, record: Record) -> None:
        assert self.spec is not None
        self.say(f"{point_name(record):>9}  {record.label:26} {in_words(record, self.spec.objectives)}")

    def replicated(self, name: str, done: int, total: int) -> None:
        self.say(f"{name}: replication {done} of {total}")


class View(Events):
    """The state of a search, and its picture. Another thread draws it, so values are replaced, never changed in place."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self.spec: StudySpec | None = None
        self.results = Results((), ())
        self.running: dict[str, str] = {}
        self.volumes: list[float] = []
        self.phase_text = ""
        self.ends: list[float] = []
        self.started_at = time.monotonic()
        self.replicating: tuple[int, int] | None = None

    def phase(self, text: str) -> None:
        self.phase_text = text

    def note(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, markup=False)

    def begin(self, folder: Path, spec: StudySpec, records: Sequence[Record]) -> None:
        super().begin(folder, spec, records)
        self.spec = spec
        for count in range(1, len(records) + 1):
            self._add(records[:count])

    def started(self, name: str, label: str) -> None:
        self.phase_text = ""
        self.running = {**self.running, name: label}
        if not self.ends:
            self.ends = [time.monotonic()]

    def paused(self, name: str) -> None:
        self.running = {other: label for other, label in self.running.items() if other != name}

    def finished(self, record: Record) -> None:
        self.paused(point_name(record))
        self.ends = [*self.ends, time.monotonic()]
        self._add([*self.results.records, record])

    def replicated(self, name: str, done: int, total: int) -> None:
        self.paused(name)
        self.ends = [*self.ends, time.monotonic()]
        self.replicating = (done, total)

    def _add(self, records: Sequence[Record]) -> None:
        assert self.spec is not None
        self.results = Results(records, self.spec.objectives)
        if self.results.hypervolume is not None:
            self.volumes = [*self.volumes, self.results.hypervolume]

    def render(self, width: int, height: int, now: float) -> RenderableType:
        """The picture at time `now`, for a terminal of `width` x `height` characters."""
        lines = [self._title(), self._counts(now), self._course()] if self.spec else []
        if self.phase_text:
            lines.append(self.phase_text)
        elif self.running:
            head = "running" if self.replicating is None else "replications, {} of {} done".format(*self.replicating)
            lines.append(f"{head}: " + ", ".join(f"{name} ({label})" for name, label in self.running.items()))
        text = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]
        return Group(*text, *([self._table(height)] if self.results.front else []))

    def _title(self) -> str:
        assert self.spec is not None
        trial = self.spec.trial
        return f"{trial.model} x{trial.scale} on {trial.target}, study {self.folder}"

    def _counts(self, now: float) -> str:
        assert self.spec is not None
        states = Counter(record.state for record in self.results.records if record.source == "trial")
        if self.replicating is not None:
            left = self.replicating[1] - self.replicating[0]
        else:
            left = self.spec.budget - sum(states.values()) + sum(not name.startswith("trial") for name in self.running)
        counts = (
            f"{states['complete']} done  {len(self.running)} running  {states['pruned']} stopped  {states['failed']} failed"
            f"  of {self.spec.budget}   {clock(now - self.started_at)}"
        )
        seconds = remaining(self.ends, left, now)
        return counts + (f", about {clock(seconds)} left" if seconds is not None else "")

    def _course(self) -> str:
        assert self.spec is not None
        if not self.volumes:
            return ""
        alone = self.results.baselines_alone().hypervolume
        return f"hypervolume {self.volumes[-1]:.4f}  {sparkline(self.volumes[-SPARKS:])}  baselines alone {alone:.4f}"

    def _table(self, height: int) -> RenderableType:
        assert self.spec is not None
        room = max(1, height - ROWS_AROUND_FRONT)
        table = front_table(self.results.front[:room], self.spec.objectives, self.results.float_record, ratios=False)
        left_out = len(self.results.front) - room
        return Group(table, f"and {left_out} more") if left_out > 0 else table


def clock(seconds: float) -> str:
    """Seconds as `3:07` or `1:02:07`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def remaining(ends: Sequence[float], left: int, now: float) -> float | None:
    """Seconds until `left` more trials have ended, at the pace of the last PACE_OVER; None before three have ended.

    ends: when the first trial began, then when each ended.
    """
    if len(ends) < 4:
        return None
    last = ends[-PACE_OVER - 1 :]
    pace = (last[-1] - last[0]) / (len(last) - 1)
    return max(0.0, left * pace - (now - ends[-1]))


def sparkline(values: Sequence[float]) -> str:
    """One block per value, from the lowest to the highest."""
    low, high = min(values), max(values)
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    return "".join(BLOCKS[round((value - low) / step)] for value in values)


def front_table(found: Sequence[Record], objectives: Sequence[str], exact: Record | None, ratios: bool = True) -> Table:
    """Points as rows. exact: the float network's record. ratios: whether costs also say how many times smaller they are."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("point", no_wrap=True)
    for name in objectives:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(Text("bits (w/a/s)", no_wrap=True, overflow="ellipsis"))  # the only column that shrinks in a narrow terminal
    for record in found:
        label = Text(record.label, no_wrap=True, overflow="ellipsis")
        table.add_row(point_name(record), *(_against(name, record, exact, ratios) for name in objectives), label)
    return table


def _against(name: str, record: Record, exact: Record | None, ratio: bool) -> str:
    """A value; a cost with its ratio to the float network's, a latency with a mark where it is no faster."""
    value = shown(name, record.values[name])
    if OBJECTIVES[name].quality or exact is None:
        return value
    if name == "latency" and faster_than_float(record, exact) is False:
        return f"{value} (not faster)"
    return f"{value} ({exact.values[name] / record.values[name]:.1f}x)" if ratio else value


@contextlib.contextmanager
def training(quiet: bool) -> Iterator[TrainingEvents]:
    """Events of a training that print their progress to standard error, unless `quiet`."""
    if quiet:
        yield TrainingEvents()
    else:
        console = Console(stderr=True, highlight=False)
        with _training_bar(console, _printer(console)) as events:
            yield events


@contextlib.contextmanager
def listening_to_training(events: TrainingEvents | None) -> Iterator[TrainingEvents]:
    """`listening` for a training."""
    if events is not None:
        yield events
    else:
        console = Console(highlight=False)
        with _training_bar(console, _printer(console) if console.is_jupyter else LOGGER.info) as bar:
            yield bar


@contextlib.contextmanager
def _training_bar(console: Console, say: Callable[[str], None]) -> Iterator[TrainingEvents]:
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not redraws(console)) as bar:
        yield TrainingBar(bar, say)


class TrainingBar(TrainingEvents):
    """A bar that moves with the steps, and a line for each validation."""

    def __init__(self, bar: ProgressBar, say: Callable[[str], None]) -> None:
        self.bar, self.task, self.say = bar, bar.add_task("training"), say

    def begin(self, step: int, steps: int) -> None:
        super().begin(step, steps)
        self.bar.update(self.task, completed=step, total=steps)

    def stepped(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def validated(self, progress: Progress) -> None:
        done = f"step {progress.step:,} of {progress.steps:,}, {clock(progress.seconds)}"
        self.say(f"{done}: {progress.quality} {shown(progress.quality, progress.value)}, loss {progress.loss:.5f}")


@contextlib.contextmanager
def downloading(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each file, updated with its name, the bytes that are here and those of the whole file."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield update


@contextlib.contextmanager
def counted(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar, updated with how many are done and how many there are. what: is counted."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
