"""How a budget of trials is spent: how many train fully at once, which are compared, and after which steps."""

from __future__ import annotations

from collections.abc import Sequence

RUNG_FACTOR = 4
"""Steps of a rung over those of the one below."""

ONLY_RUNG = 4
"""Steps of a rung, at least, where it is the only one."""

TELLING_RUNG = 16
"""Steps of the lowest of several rungs, at least: after fewer SRGAN's policies are ranked little better than by chance."""

BRACKET = 8
"""Trials that are compared with each other."""

INITIAL = 12
"""Initial trials, at most: they all train fully."""


def initial_trials(budget: int) -> int:
    """How many trials of a budget come from the sensitivity of the stages."""
    return min(INITIAL, budget // 2)


def bracket(number: int, initial: int, rungs: Sequence[int]) -> range:
    """The trials that one is compared with: itself alone where it is an initial trial or there is no rung on the way."""
    if number < initial or len(rungs) < 2:
        return range(number, number + 1)
    first = number - (number - initial) % BRACKET
    return range(first, first + BRACKET)


def rungs(steps: int) -> tuple[int, ...]:
    """Training steps after which trials are compared, geometric, and the full number last: 32 -> (8, 32)."""
    found = [steps]
    while found[0] // RUNG_FACTOR >= (ONLY_RUNG if len(found) == 1 else TELLING_RUNG):
        found.insert(0, found[0] // RUNG_FACTOR)
    return tuple(found)
