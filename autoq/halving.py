"""Which trials of a cohort train on: multi-objective successive halving, decided when the whole cohort stands at a rung.

After MO-ASHA (Schmucker et al. 2021, Multi-objective asynchronous successive halving), synchronous: with few workers an
asynchronous rule has nothing to compare the first trials with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoq import pareto

Losses = Sequence[float]
"""The objectives of a trial, all minimized."""

RUNG_FACTOR = 4
"""Steps of a rung over those of the one below."""

ONLY_RUNG = 4
"""Steps of a rung, at least, where it is the only one."""

TELLING_RUNG = 16
"""Steps of the lowest of several rungs, at least: after fewer SRGAN's policies are ranked little better than by chance."""

COHORT = 8
"""Trials that are compared with each other."""

INITIAL = 12
"""Seeds, at most: they all train fully."""

SHARE = 1 / 8
"""Of a cohort, at most, that trains on from a rung: a half, a quarter and an eighth end with the same hypervolume on the
exhaustive table (benchmarks/search.py), and an eighth saves the most steps.
"""


def seeds(budget: int) -> int:
    """How many trials of a budget are seeds."""
    return min(INITIAL, budget // 2)


def cohort(number: int, seeds: int, rungs: Sequence[int]) -> range:
    """The trials that one is compared with: itself alone where it is a seed or there is no rung on the way."""
    if number < seeds or len(rungs) < 2:
        return range(number, number + 1)
    first = number - (number - seeds) % COHORT
    return range(first, first + COHORT)


def rungs(steps: int) -> tuple[int, ...]:
    """Training steps after which trials are compared, geometric, and the full number last: 32 -> (8, 32)."""
    found = [steps]
    while found[0] // RUNG_FACTOR >= (ONLY_RUNG if len(found) == 1 else TELLING_RUNG):
        found.insert(0, found[0] // RUNG_FACTOR)
    return tuple(found)


def limit(trials: int) -> int:
    """How many of a cohort's trials go on at most."""
    return math.ceil(SHARE * trials)


def promoted(trials: Sequence[Losses], rivals: Sequence[Losses], reference: Losses, places: int) -> list[int]:
    """Indices of the trials of a cohort that train on, in its order.

    trials: losses of a cohort at this rung; rivals: of earlier trials, at this rung. Who is dominated by any of them stops;
    of the others `places` go on at most, those that add most to the volume the rivals dominate within `reference`, or
    within the worst of all where that is worse.
    """
    reference = [max(values) for values in zip(reference, *trials, *rivals, strict=True)]
    minimized: list[pareto.Direction] = ["minimize"] * len(reference)
    best = {int(index) for index in pareto.front([*trials, *rivals], minimized)}
    left = [index for index in range(len(trials)) if index in best]
    chosen: list[int] = []
    while left and len(chosen) < places:
        volumes = {
            each: pareto.hypervolume([*rivals, *(trials[index] for index in (*chosen, each))], minimized, reference)
            for each in left
        }
        chosen.append(max(volumes, key=volumes.__getitem__))
        left.remove(chosen[-1])
    return sorted(chosen)
