"""What a person sees while a search runs and when it ends. Progress goes to standard error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from autoq.objectives import OBJECTIVES
from autoq.spec import Record
from autoq.study import Study, baselines_alone, float_baseline, front, hypervolume

if TYPE_CHECKING:
    from autoq.driver import Events


def shown(name: str, value: float) -> str:
    """A value with its unit; sizes in KiB."""
    unit = OBJECTIVES[name].unit
    if unit == "bytes":
        return f"{value / 1024:.0f} KiB"
    return f"{value:.1f} {unit}" if not OBJECTIVES[name].quality else f"{value:.2f} {unit}".strip()


def _against(name: str, record: Record, reference: Record | None) -> str:
    """A value; for a cost also how many times smaller than the float network's."""
    value = shown(name, record.values[name])
    if OBJECTIVES[name].quality or reference is None:
        return value
    return f"{value} ({reference.values[name] / record.values[name]:.1f}x)"


def progress(quiet: bool) -> Events:
    """Events that print one line a phase and a finished trial to standard error."""
    from autoq.driver import Events

    if quiet:
        return Events()
    console = Console(stderr=True, highlight=False)

    def finished(record: Record) -> None:
        name = record.name or f"trial {record.number}"
        if record.state == "complete":
            costs = (metric for metric in ("size", "latency", "psnr", "niqe", "pi") if metric in record.values)
            result = "  ".join(f"{metric} {shown(metric, record.values[metric])}" for metric in costs)
        else:
            result = f"{record.state}: {record.reason}"
        console.print(f"{name:>9}  {record.label:26} {result}", markup=False, soft_wrap=True)

    return Events(phase=lambda text: console.print(text, markup=False, soft_wrap=True), finished=finished)


def show_front(study: Study, report: Path, seconds: float) -> None:
    """The front as a table on standard output, how it compares, and where the files are."""
    console = Console(highlight=False)
    objectives = study.spec.objectives
    records = study.records()
    reference = float_baseline(records)
    table = Table(title=f"front of {study.name}", title_justify="left", box=box.SIMPLE)
    table.add_column("point", no_wrap=True)
    for name in objectives:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bits by stage, w/a/s")
    for record in front(records, objectives):
        values = [_against(name, record, reference) for name in objectives]
        table.add_row(record.name or f"trial {record.number}", *values, record.label)
    console.print(table)
    alone = baselines_alone(records, objectives)
    with_trials = hypervolume(records, objectives)
    if alone is not None and with_trials is not None:
        console.print(f"hypervolume {with_trials:.4f}; baselines alone {alone:.4f}")
    console.print(f"{seconds:.0f} s; study {study.folder}; report {report}", soft_wrap=True)
