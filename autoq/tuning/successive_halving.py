"""Which trials of a cohort train on: multi-objective successive halving, decided when the whole cohort stands at a rung.

After MO-ASHA (Schmucker et al. 2021, Multi-objective asynchronous successive halving), synchronous: with few workers an
asynchronous rule has nothing to compare the first trials with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoq.config.objectives import Direction
from autoq.study import pareto

Losses = Sequence[float]
"""The objectives of a trial, all minimized."""

SHARE = 1 / 8
"""Of a cohort, at most, that trains on from a rung: a half, a quarter and an eighth end with the same hypervolume on the
exhaustive table (benchmarks/search.py), and an eighth saves the most steps.
"""


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
    minimized: list[Direction] = ["minimize"] * len(reference)
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
