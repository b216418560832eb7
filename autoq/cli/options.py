"""Parsers of option values that name the option, what is expected and what to type."""

from __future__ import annotations

import re
from collections.abc import Callable

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


def number(option: str, unit: str, example: float) -> Callable[[str], float]:
    """A parser of numbers from a thousandth to MANY."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.001 <= value <= MANY:
            raise InputError(f"{option} '{text}': expected {unit}, from 0.001 to {MANY}; type {option} {example:g}")
        return value

    return parse
