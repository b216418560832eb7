"""How a budget of trials is spent: initial trials, brackets, and the rungs at which they are compared."""

from __future__ import annotations

from collections.abc import Sequence

RUNG_FACTOR = 8
"""Ratio of the steps of two neighbouring rungs. Three steps rank policies about as eight do (benchmarks/fidelity.py)."""

LOWEST_RUNG = 2
"""Least steps of a rung."""

BRACKET = 8
"""Trials in a bracket, which are compared with each other."""

INITIAL = 12
"""Most initial trials. They all train fully."""


def initial_trials(budget: int) -> int:
    """How many trials of a budget are chosen from the sensitivity of the stages."""
    return min(INITIAL, budget // 2)


def bracket(number: int, initial: int, rungs: Sequence[int]) -> range:
    """The trials that one is compared with: only itself if it is an initial trial or there is no rung below full training."""
    if number < initial or len(rungs) < 2:
        return range(number, number + 1)
    first = number - (number - initial) % BRACKET
    return range(first, first + BRACKET)


def rungs(steps: int) -> tuple[int, ...]:
    """Training steps after which trials are compared, geometric, and the full number last: 24 -> (3, 24)."""
    found = [steps]
    while found[0] // RUNG_FACTOR >= LOWEST_RUNG:
        found.insert(0, found[0] // RUNG_FACTOR)
    return tuple(found)
