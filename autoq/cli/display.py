"""What a person sees of files put to use: progress on standard error, results on standard output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from autoq.config.objectives import OBJECTIVES


@contextlib.contextmanager
def counted(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that takes how many are done, and of how many. what: they are."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_upscaled(found: Mapping[str, Any]) -> None:
    """What was written, in how many tiles, and what is to be known of it, on standard output."""
    console = Console(highlight=False)
    tiles = f"{found['tiles']} tiles that overlap by {found['overlap']}" if found["tiles"] > 1 else "one piece"
    console.print(
        f"{found['output']}: {found['width']}x{found['height']}, x{found['scale']}, in {tiles}", soft_wrap=True, markup=False
    )
    if not found["exact"]:
        far = "the whole image, or nobody knows how far" if found["reach"] is None else f"{found['reach']} pixels far"
        console.print(f"the network sees {far}: tiles differ a little from the image in one piece", soft_wrap=True)
    if found["note"]:
        console.print(found["note"], soft_wrap=True, markup=False)


def show_evaluation(found: Mapping[str, Any]) -> None:
    """Metrics of every image and their means as a table on standard output."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("image", overflow="fold")
    for name in found["metrics"]:
        unit = OBJECTIVES[name].unit
        table.add_column(f"{name} {unit}".strip(), justify="right", no_wrap=True)
    for image in found["each"]:
        table.add_row(Text(image["image"]), *(f"{image[name]:#.4g}" for name in found["metrics"]))
    table.add_section()
    table.add_row(f"mean of {found['images']}", *(f"{value:#.4g}" for value in found["metrics"].values()))
    Console(highlight=False).print(table)


def show_delivered(file: Path, lines: Sequence[Mapping[str, str]], faster: bool | None, warnings: Sequence[str]) -> None:
    """A point's file on standard output, with what was promised of it and what was found. faster: than float, if measured."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("promised", "found"):
        table.add_column(column, justify="right")
    table.add_column("must be")
    for line in lines:
        table.add_row(line["name"], line["promised"], line["found"], line["tolerance"])
    console.print(table)
    if faster is False:
        console.print("not faster than the float network here", soft_wrap=True)
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    console.print(str(file) if warnings else f"{file}; as promised", soft_wrap=True, markup=False)
