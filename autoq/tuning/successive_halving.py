"""Multi-objective successive halving: which trials of a bracket train on, decided when all of them have reached a rung.

After MO-ASHA (Schmucker et al. 2021, Multi-objective asynchronous successive halving), but synchronous: with few workers an
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
"""Largest fraction of a bracket that trains on from a rung."""


def slots(trials: int) -> int:
    """The largest number of a bracket's trials that train on."""
    return math.ceil(PROMOTED_FRACTION * trials)


def promoted(trials: Sequence[Losses], rivals: Sequence[Losses], reference: Losses, slots: int) -> list[int]:
    """Choose the trials of a bracket that train on.

    A trial that another one dominates stops. Of the rest, those train on that add most to the volume that the rivals
    dominate within `reference`, or within the worst values of all where those are worse.

    Args:
        trials: Losses of the bracket's trials at this rung.
        rivals: Losses of earlier trials at this rung.
        reference: The reference point of the volume.
        slots: The largest number of trials that train on.

    Returns:
        Indices of the promoted trials, ascending.
    """
    reference = [max(values) for values in zip(reference, *trials, *rivals, strict=True)]
    minimized: list[Direction] = ["minimize"] * len(reference)
    best = {int(index) for index in pareto.front([*trials, *rivals], minimized)}
    left = [index for index in range(len(trials)) if index in best]
    chosen = pareto.most_volume([trials[index] for index in left], minimized, reference, slots, rivals)
    return sorted(left[position] for position in chosen)
