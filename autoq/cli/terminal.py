"""What a person sees while a search runs and when it ends. Progress goes to standard error, results to standard output.

On a terminal a view is drawn in place; elsewhere one line is printed for every phase and every trial that ends.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from autoq.config.events import Events, Progress, TrainingEvents
from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import FLOAT_BITS
from autoq.config.spec import Record, StudySpec
from autoq.study import replication, selection
from autoq.study.results import (
    NOT_FASTER,
    baselines_alone,
    faster_than_float,
    float_baseline,
    front,
    hypervolume,
    in_words,
    point_name,
    seeds_alone,
    shown,
)
from autoq.study.study import Study

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 30
"""Of the hypervolume's course, the last so many values are drawn."""

PACE_OVER = 20
"""The remaining time is judged by the last so many trials."""

FRAMES_PER_SECOND = 2
ROWS_AROUND_FRONT = 9
"""Lines of the view that are not rows of the front."""


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Events]:
    """Events that show themselves on standard error: nothing, lines, or a view drawn in place."""
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
    """One line a phase, a note, and a trial that ended."""

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
        self._print(f"study {folder}{f': {len(records)} results are there already' if records else ''}")

    def finished(self, record: Record) -> None:
        assert self.spec is not None
        self._print(f"{point_name(record):>9}  {record.label:26} {in_words(record, self.spec.objectives)}")

    def confirmed(self, name: str, done: int, total: int) -> None:
        self._print(f"{name}, with another seed: {done} of {total}")


class View(Events):
    """The state of a search, and its picture. Drawn from another thread: what is replaced is never changed in place."""

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
        """The picture at a moment, for a terminal of `width` x `height` characters."""
        lines = [self._title(), self._counts(now), self._course()] if self.spec else []
        if self.phase_text:
            lines.append(self.phase_text)
        elif self.running:
            head = "running" if self.confirming is None else "front with other seeds, {} of {} done".format(*self.confirming)
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
    """Seconds until `left` more trials have ended, at the pace of the last PACE_OVER. None before three have ended.

    ends: when the first trial began, then when each ended.
    """
    if len(ends) < 4:
        return None
    last = ends[-PACE_OVER - 1 :]
    pace = (last[-1] - last[0]) / (len(last) - 1)
    return max(0.0, left * pace - (now - ends[-1]))


def sparkline(values: Sequence[float]) -> str:
    """One block a value, from the least to the greatest."""
    low, high = min(values), max(values)
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    return "".join(BLOCKS[round((value - low) / step)] for value in values)


def front_table(found: Sequence[Record], objectives: Sequence[str], exact: Record | None, ratios: bool = True) -> Table:
    """Points as rows. exact: the float network's record; costs also as times smaller than its, where wanted."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("point", no_wrap=True)
    for name in objectives:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bits by stage, w/a/s", no_wrap=True, overflow="ellipsis")
    for record in found:
        table.add_row(point_name(record), *(_against(name, record, exact, ratios) for name in objectives), record.label)
    return table


def _against(name: str, record: Record, exact: Record | None, ratio: bool) -> str:
    """A value; for a cost also how many times smaller than the float network's; and whether a latency is no gain over that."""
    value = shown(name, record.values[name])
    if OBJECTIVES[name].quality or exact is None:
        return value
    if name == "latency" and faster_than_float(record, exact) is False:
        return f"{value} {NOT_FASTER}"
    return f"{value} ({exact.values[name] / record.values[name]:.1f}x)" if ratio else value


def show_front(study: Study, report: Path | None, seconds: float) -> None:
    """The front as a table on standard output, how it compares, and where the files are."""
    console = Console(highlight=False)
    objectives = study.spec.objectives
    records = study.records()
    found = front(records, objectives)
    if found:
        console.print(f"front of {study.name}")
        console.print(front_table(found, objectives, float_baseline(records)))
        if rules := selection.recommended(records, objectives):
            points = ", ".join(f"{rule} {point_name(record)}" for rule, record in rules.items())
            close = selection.close_to_float(objectives)
            console.print(f"recommended: {points} (smallest and fastest with {close}, if any point has)", soft_wrap=True)
    alone = baselines_alone(records, objectives)
    volume = hypervolume(records, objectives)
    if alone is not None and volume is not None:
        sensitivity = study.sensitivity()
        seeds = hypervolume(seeds_alone(records, sensitivity), objectives)
        of_seeds = f"; seeds alone {seeds:.4f}" if sensitivity else ""
        console.print(f"hypervolume {volume:.4f}{of_seeds}; baselines alone {alone:.4f}")
    if sentence := replication.in_words(study.confirmed, records, objectives):
        console.print(sentence, soft_wrap=True)
    files = f"study {study.folder}" + (f"; report {report}" if report else "")
    console.print(f"{seconds:.0f} s; {files}", soft_wrap=True)


# ------------------------------------------------------------ networks


@contextlib.contextmanager
def training(quiet: bool) -> Iterator[TrainingEvents]:
    """Events of a float training that show themselves on standard error: nothing, or a bar and a line a validation."""
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


def show_models(found: Sequence[Mapping[str, Any]]) -> None:
    """The networks as a table on standard output."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("network", "scale", "parameters", "float MiB", "bundled weights, PSNR dB"):
        table.add_column(heading, justify="right" if heading in ("parameters", "float MiB") else "left", no_wrap=True)
    for model in found:
        for scale in model["scales"]:
            bundled = model["bundled"].get(scale)
            quality = ", ".join(f"{name} {value:.2f}" for name, value in bundled["psnr"].items()) if bundled else "-"
            table.add_row(
                model["name"] if scale == model["scales"][0] else "",
                f"x{scale}",
                f"{model['parameters'][scale]:,}",
                f"{model['float_mib'][scale]:.2f}",
                quality,
            )
    Console(highlight=False).print(table)


def show_targets(found: Sequence[Mapping[str, Any]]) -> None:
    """The targets and their facts on standard output."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("target", "here", "facts"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "target")
    for target in found:
        facts = {role: _formats(formats) for role, formats in target["roles"].items()}
        facts[f"on integers, to {target['integer_bits']} bits"] = target["integers"]
        facts |= {"size-only": target["size_only"], "latency": target["latency"] or "none", "file": target["file"]}
        lines = [f"{name}: {value}" for name, value in facts.items() if value]
        table.add_row(target["name"], "yes" if target["usable"] else f"no: {target['reason']}", Text("\n".join(lines)))
    Console(highlight=False).print(table, markup=False)


def _formats(formats: Mapping[str, Any]) -> str:
    """`1-16, 32 bits; per channel or tensor; symmetric`."""
    integers = [bits for bits in formats["bits"] if bits != FLOAT_BITS]
    widths = f"{integers[0]}-{integers[-1]}" if len(integers) > 1 else str(integers[0])
    also = ", float" if FLOAT_BITS in formats["bits"] else ""
    signs = " or ".join("symmetric" if signed else "affine" for signed in formats["signed"])
    return f"{widths} bits{also}; per {' or '.join(formats['granularity'])}; {signs}"


COST_LINES = (
    ("parameters", "parameters", ""),
    ("macs", "multiplications", ""),
    ("ops", "operations, 32 x 32 bits each", ""),
    ("bops", "bit operations", ""),
    ("peak_memory", "feature maps, three-map rule", "MB"),
    ("peak_memory_liveness", "feature maps, liveness", "MB"),
    ("size", "packed package", "MB"),
    ("size_runtime", "tensors of the runtime file", "MB"),
)


def show_cost(found: Mapping[str, Any]) -> None:
    """Costs as lines on standard output; MB is 10^6 bytes."""
    table = Table(box=None, show_header=False)
    for key, meaning, unit in COST_LINES:
        table.add_row(meaning, f"{found[key] / 1e6:,.3f} MB" if unit else f"{found[key]:,.0f}", style=None)
    if "latency_modelled" in found:
        table.add_row("latency, modelled", f"{found['latency_modelled']:,.2f} ms")
    if found["float_layers"]:
        table.add_row("always in float", Text(", ".join(found["float_layers"])))
    Console(highlight=False).print(table)


def show_sensitivity(found: Mapping[str, Any]) -> None:
    """What quantizing some stages alone changes and saves, and the ranking, on standard output."""
    console = Console(highlight=False)
    metric, widths = found["metric"], sorted({entry["bits"] for entry in found["entries"]})
    groups = list(dict.fromkeys(tuple(entry["stages"]) for entry in found["entries"]))
    known = {(tuple(entry["stages"]), entry["bits"]): entry for entry in found["entries"]}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("quantized alone", overflow="fold", min_width=18)
    for heading in (*(f"{bits} bits" for bits in widths), f"saves at {widths[0]}", "faster by"):
        table.add_column(heading, justify="right", no_wrap=True)
    console.print(
        f"{metric} of {found['model']} x{found['scale']}: {found['float'][metric]:.2f} in float, and how it changes", soft_wrap=True
    )
    for group in groups:
        changes = [f"{known[group, bits]['change']:+.2f}" for bits in widths]
        saved, faster = (known[group, widths[0]][name] for name in ("size_saved", "time_saved"))
        table.add_row(
            " + ".join(group), *changes, f"{saved / 1024:.0f} KiB", "no latency" if faster is None else f"{faster:.1f} ms"
        )
    console.print(table)
    worst, best = found["most_sensitive"], found["least_sensitive"]
    evidence = {stage: f"{known[(stage,), widths[0]]['change']:+.2f}" for stage in (worst, best)}
    words = f"most sensitive: {worst} ({evidence[worst]} {metric} at {widths[0]} bits); least: {best} ({evidence[best]})"
    console.print(words, soft_wrap=True)
    for over, agreement in found["stability"].items():
        if agreement is not None:
            interval = f"[{agreement['low']:.2f}, {agreement['high']:.2f}]"
            console.print(f"the ranking over {over}: rank correlation {agreement['spearman']:.2f} {interval}")
    console.print(f"{found['seconds']:.0f} s")
