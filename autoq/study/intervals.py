"""Means and medians with their 95 % intervals, and rank correlations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean or median, and its interval."""

    middle: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's interval, which is infinite for a single value."""
    from scipy import stats

    middle = statistics.fmean(values)
    if len(values) == 1:
        return Interval(middle, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Interval(middle, middle - half, middle + half)


def median_interval(samples: Sequence[float]) -> Interval:
    """Median with its interval of order statistics (binomial); with too few samples, the range of all of them."""
    from scipy import stats

    found = stats.quantile_test(samples, p=0.5).confidence_interval(CONFIDENCE)
    low, high = (float(bound) for bound in found)
    return Interval(
        statistics.median(samples),
        min(samples) if math.isnan(low) else low,
        max(samples) if math.isnan(high) else high,
    )


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation. None for fewer than three pairs, and where all values of one side are equal."""
    from scipy import stats

    if len(pairs) < 3 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return float(stats.spearmanr(pairs).statistic)
