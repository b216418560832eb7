"""Validators of options: what is typed -> the value that is used, or an InputError with what was given, expected, and to type."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BeforeValidator, ValidationInfo

from autoq.config.constraints import parse_all
from autoq.config.objectives import check_objectives
from autoq.errors import InputError

MANY = 1_000_000
"""The most trials, steps, seconds and GiB that can be asked for."""


def flag(name: str) -> str:
    """An option as it is typed: `--max-steps`."""
    return "--constraint" if name == "constraints" else f"--{name.replace('_', '-')}"


def read_whole(value: Any, option: str, least: int, most: int, example: int) -> int:
    """A whole number. Raises InputError that names the option and what to type."""
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise InputError(f"{option} '{text}': expected a whole number from {least} to {most}, for example {option} {example}")
    return int(text)


def whole(least: int, most: int, example: int) -> BeforeValidator:
    """A validator of whole numbers, or None; see `read_whole`."""

    def check(value: Any, info: ValidationInfo) -> int | None:
        return None if value is None else read_whole(value, flag(str(info.field_name)), least, most, example)

    return BeforeValidator(check)


def number(unit: str, example: float, least: float = 0.001) -> BeforeValidator:
    """A validator of numbers from `least` to MANY, or None."""

    def check(value: Any, info: ValidationInfo) -> float | None:
        if value is None:
            return None
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not least <= found <= MANY:
            option = flag(str(info.field_name))
            raise InputError(f"{option} '{value}': expected {unit}, from {least:g} to {MANY}, for example {option} {example:g}")
        return found

    return BeforeValidator(check)


def frame_size(value: Any) -> tuple[int, int]:
    """`96x64` -> (96, 64). Raises InputError."""
    text = value if isinstance(value, str) else "x".join(map(str, value))
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(re.fullmatch("[0-9]{2,4}", part) and 16 <= int(part) <= 8192 for part in parts):
        raise InputError(f"--frame '{text}': expected WIDTHxHEIGHT, each from 16 to 8192 pixels, for example --frame 96x96")
    return int(parts[0]), int(parts[1])


def crops(value: Any) -> int | str | None:
    if value in ("all", None):
        return value
    if not re.fullmatch("[1-9][0-9]{0,5}", str(value)):
        raise InputError(f"--eval-crops '{value}': expected a whole number from 1 to 999999, or `all`, for example --eval-crops 32")
    return int(value)


def objective_names(value: str | Iterable[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else tuple(value)
    check_objectives(names)
    return names


def bounds(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(bound.text for bound in parse_all([value] if isinstance(value, str) else value))
