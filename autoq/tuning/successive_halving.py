"""Which trials of a bracket train on: multi-objective successive halving, decided when the whole bracket stands at a rung.

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

PROMOTED_FRACTION = 1 / 8
"""Of a bracket, at most, that trains on from a rung: a half, a quarter and an eighth end with the same hypervolume on the
exhaustive table (benchmarks/search.py), and an eighth saves the most steps.
"""


def slots(trials: int) -> int:
    """How many of a bracket's trials go on at most."""
    return math.ceil(PROMOTED_FRACTION * trials)


def promoted(trials: Sequence[Losses], rivals: Sequence[Losses], reference: Losses, slots: int) -> list[int]:
    """Indices of the trials of a bracket that train on, in its order.

    trials: losses of a bracket at this rung; rivals: of earlier trials, at this rung. A trial that any of them dominates stops;
    of the others at most `slots` go on, those that add most to the volume the rivals dominate within `reference`, or
    within the worst of all where that is worse.
    """
    reference = [max(values) for values in zip(reference, *trials, *rivals, strict=True)]
    minimized: list[Direction] = ["minimize"] * len(reference)
    best = {int(index) for index in pareto.front([*trials, *rivals], minimized)}
    left = [index for index in range(len(trials)) if index in best]
    chosen: list[int] = []
    while left and len(chosen) < slots:
        volumes = {
            each: pareto.hypervolume([*rivals, *(trials[index] for index in (*chosen, each))], minimized, reference)
            for each in left
        }
        chosen.append(max(volumes, key=volumes.__getitem__))
        left.remove(chosen[-1])
    return sorted(chosen)
