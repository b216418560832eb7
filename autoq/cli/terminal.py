"""Progress on standard error: a view drawn in place on a terminal, elsewhere a line for every phase and finished trial."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from autoq.cli.tables import front_table
from autoq.config.events import Events, Progress, TrainingEvents
from autoq.config.spec import Record, StudySpec
from autoq.study.results import baselines_alone, float_baseline, front, hypervolume, in_words, point_name

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
    """Events that print their progress: nothing, lines, or a view drawn in place."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield Events()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield Lines(console)
    else:
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


class Lines(Events):
    """A line for every phase, note and finished trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.spec: StudySpec | None = None

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def phase(self, text: str) -> None:
        self._print(text)

    def note(self, text: str) -> None:
        self._print(text)

    def begin(self, folder: Path, spec: StudySpec, records: Sequence[Record]) -> None:
        super().begin(folder, spec, records)
        self.spec = spec
        self._print(f"study {folder}{f': {len(records)} earlier results' if records else ''}")

    def finished(self, record: Record) -> None:
        assert self.spec is not None
        self._print(f"{point_name(record):>9}  {record.label:26} {in_words(record, self.spec.objectives)}")

    def confirmed(self, name: str, done: int, total: int) -> None:
        self._print(f"{name}: replication {done} of {total}")


class View(Events):
    """The state of a search, and its picture. Another thread draws it, so values are replaced, never changed in place."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self.spec: StudySpec | None = None
        self.records: list[Record] = []
        self.running: dict[str, str] = {}
        self.volumes: list[float] = []
        self.phase_text = ""
        self.ends: list[float] = []
        self.started_at = time.monotonic()
        self.front: list[Record] = []
        self.confirming: tuple[int, int] | None = None

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
        self._add([*self.records, record])

    def confirmed(self, name: str, done: int, total: int) -> None:
        self.paused(name)
        self.ends = [*self.ends, time.monotonic()]
        self.confirming = (done, total)

    def _add(self, records: Sequence[Record]) -> None:
        assert self.spec is not None
        self.records = list(records)
        self.front = front(self.records, self.spec.objectives)
        volume = hypervolume(self.records, self.spec.objectives)
        if volume is not None:
            self.volumes = [*self.volumes, volume]

    def render(self, width: int, height: int, now: float) -> RenderableType:
        """The picture at time `now`, for a terminal of `width` x `height` characters."""
        lines = [self._title(), self._counts(now), self._course()] if self.spec else []
        if self.phase_text:
            lines.append(self.phase_text)
        elif self.running:
            head = "running" if self.confirming is None else "replications, {} of {} done".format(*self.confirming)
            lines.append(f"{head}: " + ", ".join(f"{name} ({label})" for name, label in self.running.items()))
        text = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]
        return Group(*text, *([self._table(height)] if self.front else []))

    def _title(self) -> str:
        assert self.spec is not None
        trial = self.spec.trial
        return f"{trial.model} x{trial.scale} on {trial.target}, study {self.folder}"

    def _counts(self, now: float) -> str:
        assert self.spec is not None
        states = Counter(record.state for record in self.records if record.source == "trial")
        if self.confirming is not None:
            left = self.confirming[1] - self.confirming[0]
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
        alone = baselines_alone(self.records, self.spec.objectives)
        return f"hypervolume {self.volumes[-1]:.4f}  {sparkline(self.volumes[-SPARKS:])}  baselines alone {alone:.4f}"

    def _table(self, height: int) -> RenderableType:
        assert self.spec is not None
        room = max(1, height - ROWS_AROUND_FRONT)
        table = front_table(self.front[:room], self.spec.objectives, float_baseline(self.records), ratios=False)
        left_out = len(self.front) - room
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


@contextlib.contextmanager
def training(quiet: bool) -> Iterator[TrainingEvents]:
    """Events of a float training that print their progress: nothing, or a bar and a line per validation."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield TrainingEvents()
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield TrainingBar(bar)


class TrainingBar(TrainingEvents):
    """A bar that moves with the steps; a line for each validation."""

    def __init__(self, bar: ProgressBar) -> None:
        self.bar, self.task = bar, bar.add_task("training")

    def begin(self, step: int, steps: int) -> None:
        super().begin(step, steps)
        self.bar.update(self.task, completed=step, total=steps)

    def stepped(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def validated(self, progress: Progress) -> None:
        minutes, seconds = divmod(int(progress.seconds), 60)
        done = f"step {progress.step:,} of {progress.steps:,}, {minutes}:{seconds:02}"
        self.bar.console.print(f"{done}: {progress.psnr:.2f} dB, loss {progress.loss:.5f}")


@contextlib.contextmanager
def counted(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar, updated with how many are done and how many there are. what: is counted."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
