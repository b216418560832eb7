"""Dominance, front and hypervolume of arrays of points; everything is minimized after `losses`."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoq.config.objectives import Direction

Matrix = NDArray[np.float64]


def losses(values: ArrayLike, directions: Sequence[Direction]) -> Matrix:
    """[points, objectives] with the maximized columns negated."""
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    signed: Matrix = np.asarray(values, dtype=np.float64).reshape(-1, len(directions)) * signs
    return signed


def front(values: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.intp]:
    """Indices of the non-dominated points, in order of the first objective; of equal points the first."""
    points = losses(values, directions)
    if len(points) == 0:
        return np.empty(0, dtype=np.intp)
    kept = np.flatnonzero(moocore.is_nondominated(points, keep_weakly=False))
    return kept[np.lexsort(points[kept].T[::-1])]


def hypervolume(values: ArrayLike, directions: Sequence[Direction], reference: Sequence[float]) -> float:
    """Volume dominated within `reference` (given in the objectives' own units), each axis divided by |reference|."""
    points, corner = losses(values, directions), losses([reference], directions)[0]
    inside = points[(points < corner).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    scale = np.abs(corner)
    return float(moocore.hypervolume(inside / scale, ref=corner / scale))


def most_volume(
    values: ArrayLike, directions: Sequence[Direction], reference: Sequence[float], count: int, rivals: ArrayLike = ()
) -> list[int]:
    """Indices of up to `count` points, each the one that adds most to the volume dominated by `rivals` and the earlier ones.

    Of equal contributions the first point is taken.
    """
    points = np.asarray(values, dtype=np.float64).reshape(-1, len(directions))
    known = np.asarray(rivals, dtype=np.float64).reshape(-1, len(directions))
    left, chosen = list(range(len(points))), list[int]()
    while left and len(chosen) < count:
        volumes = [hypervolume(np.vstack([known, points[[*chosen, index]]]), directions, reference) for index in left]
        chosen.append(left.pop(int(np.argmax(volumes))))
    return chosen


def dominated(values: ArrayLike, others: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.bool_]:
    """Whether each point is dominated by one of `others`: as good in every objective and better in one."""
    points, rivals = losses(values, directions)[:, None], losses(others, directions)[None]
    better = np.all(rivals <= points, axis=2) & np.any(rivals < points, axis=2)
    return np.asarray(np.any(better, axis=1), np.bool_)
