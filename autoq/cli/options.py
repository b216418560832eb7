"""Options that several commands take, and parsers of values that name the option, what is expected and what to type."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated

import typer

from autoq.errors import InputError

MANY = 1_000_000
"""The most trials, steps, seconds and GiB that can be asked for."""

MOST_SEED = 2**32 - 1
MOST_PROCESSES = 1024
MOST_SCALE = 16
LAST_PORT = 65535


def whole(option: str, least: int, most: int, example: int) -> Callable[[str], int]:
    """A parser of whole numbers that names the option and what to type."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise InputError(f"{option} '{text}': expected a whole number from {least} to {most}; type {option} {example}")
        return int(text)

    return parse


def number(option: str, unit: str, example: float, least: float = 0.001) -> Callable[[str], float]:
    """A parser of numbers from `least` to MANY."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= MANY:
            raise InputError(f"{option} '{text}': expected {unit}, from {least:g} to {MANY}; type {option} {example:g}")
        return value

    return parse


JSON = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
QUIET = Annotated[bool, typer.Option("--quiet", help="No progress.")]
SCALE = Annotated[
    int | None,
    typer.Option(
        parser=whole("--scale", 1, MOST_SCALE, 4),
        metavar="N",
        show_default="4, or that of the bundled weights",
        help="Upscaling factor.",
    ),
]
TARGET = Annotated[str, typer.Option(help="Where the result will run, see `autoq targets`.")]
