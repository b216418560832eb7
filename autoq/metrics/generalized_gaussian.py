"""The shape of a generalized Gaussian distribution, by matching moments (Sharifi and Leon-Garcia 1995), for many samples at once.

A shape's ratio of variance to squared mean absolute value, Gamma(1/s) Gamma(3/s) / Gamma(2/s)^2, falls as the shape s rises. The
published metrics take the nearest entry of a table with steps of 0.001; a binary search finds the same one.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import gammaln

STEP, MOST = 0.001, 10.0
"""Steps and largest shape of the tables."""


class Table:
    """The shapes from `least` to MOST. Like the published ones its steps are rounded to float32."""

    def __init__(self, least: float) -> None:
        count = math.ceil((MOST + STEP - least) / STEP)
        self.shapes = (least + STEP * np.arange(count)).astype(np.float32).astype(float)
        self.ratios = np.exp(gammaln(1 / self.shapes) + gammaln(3 / self.shapes) - 2 * gammaln(2 / self.shapes))
        self.inverses = 1 / self.ratios

    def by_ratio(self, wanted: np.ndarray) -> np.ndarray:
        """The shape with the nearest ratio of variance to squared mean absolute value; the least one for NaN."""
        backwards = _nearest(self.ratios[::-1], wanted)
        return self.shapes[np.where(np.isnan(wanted), 0, len(self.shapes) - 1 - backwards)]

    def by_inverse(self, wanted: np.ndarray) -> np.ndarray:
        """The shape with the nearest ratio of squared mean absolute value to variance; the least one for NaN."""
        return self.shapes[np.where(np.isnan(wanted), 0, _nearest(self.inverses, wanted))]


def _nearest(rising: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The index of the value of a rising table that is nearest to each wanted one."""
    above = np.clip(np.searchsorted(rising, wanted), 1, len(rising) - 1)
    below = above - 1
    with np.errstate(invalid="ignore"):
        return np.where(wanted - rising[below] <= rising[above] - wanted, below, above)


table = functools.cache(Table)
"""The table whose least shape this is."""
