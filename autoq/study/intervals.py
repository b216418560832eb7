"""Means and medians with their 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean or median, and the interval around it."""

    middle: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Of one value nothing is known but itself: the interval is infinite."""
    middle = statistics.fmean(values)
    if len(values) == 1:
        return Interval(middle, -math.inf, math.inf)
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half)


def median_interval(samples: Sequence[float]) -> Interval:
    """Between the samples of which as many lie outside as chance allows for the median (binomial)."""
    ordered, count = sorted(samples), len(samples)
    outside, left_out = 0.5**count, 0
    while left_out + 1 < count / 2 and outside + math.comb(count, left_out + 1) * 0.5**count <= (1 - CONFIDENCE) / 2:
        left_out += 1
        outside += math.comb(count, left_out) * 0.5**count
    return Interval(statistics.median(ordered), ordered[left_out], ordered[count - 1 - left_out])
