"""What became of a front's points when they were trained with other seeds, judged on other images and measured again.

A search takes the best of many noisy numbers, so what it reports is a little too good. Training again with seeds it did
not use, on images it never saw, shows by how much. Intervals of means are Student's, 95 %; those of medians are of order
statistics, at least 95 % where there are enough samples, else all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from autoq import pareto
from autoq.findings import FLOAT_NAME, losses, point_name
from autoq.objectives import OBJECTIVES
from autoq.policy import Policy
from autoq.spec import Confirmation, Record, Remeasured

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean or median, and the interval around it."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Confirmed:
    """A point of the front. again, unseen: qualities by name, on the search's images and on others; latency: ms.

    ranks: of the first quality among the points, best is 1, as the search found it, trained again, and on other images.
    stays: whether no other point is better in everything, with the qualities on other images and the latency found again.
    failed: trainings that failed.
    """

    record: Record
    again: Mapping[str, Interval]
    unseen: Mapping[str, Interval]
    latency: Interval | None
    ranks: tuple[int, int, int]
    stays: bool
    failed: int

    @property
    def changes_rank(self) -> bool:
        return len(set(self.ranks)) > 1


def confirmed(
    front: Sequence[Record], confirmations: Sequence[Confirmation], remeasured: Remeasured, objectives: Sequence[str]
) -> list[Confirmed]:
    """The points of a front that were trained again, in its order; the float network, which nothing changes, among them."""
    trainings: dict[str, list[Confirmation]] = {}
    for each in confirmations:
        trainings.setdefault(each.policy, []).append(each)
    points = [_Trained.of(record, trainings) for record in front]
    points = [point for point in points if point.complete]
    qualities = [name for name in objectives if OBJECTIVES[name].quality and not OBJECTIVES[name].relative]
    if not points or not qualities:
        return []
    again = [{name: point.interval([e.result.values[name] for e in point.complete]) for name in qualities} for point in points]
    unseen = [{name: point.interval([e.unseen[name] for e in point.complete]) for name in qualities} for point in points]
    samples = [remeasured.samples.get(point.hash) for point in points]
    latency = [median_interval(found) if found else None for found in samples]
    first = qualities[0]
    ranks = zip(
        _ranks([point.record.values[first] for point in points], first),
        _ranks([values[first].middle for values in again], first),
        _ranks([values[first].middle for values in unseen], first),
        strict=True,
    )
    found = [
        {
            **point.record.values,
            **{name: interval.middle for name, interval in values.items()},
            **({"latency": time.middle} if time else {}),
        }
        for point, values, time in zip(points, unseen, latency, strict=True)
    ]
    best = set(pareto.front([losses(values, objectives) for values in found], ["minimize"] * len(objectives)))
    return [
        Confirmed(point.record, seen, other, time, rank, stays=number in best, failed=point.failed)
        for number, (point, seen, other, time, rank) in enumerate(zip(points, again, unseen, latency, ranks, strict=True))
    ]


@dataclass(frozen=True)
class _Trained:
    """A point of the front and its trainings with other seeds, as far as they ended well."""

    record: Record
    hash: str
    complete: list[Confirmation]
    failed: int

    @classmethod
    def of(cls, record: Record, trainings: Mapping[str, list[Confirmation]]) -> _Trained:
        policy = Policy.from_dict(record.policy)
        found = trainings.get(policy.hash, [])
        complete = [each for each in found if each.result.state == "complete"]
        return cls(record, policy.hash, complete, len(found) - len(complete))

    def interval(self, values: Sequence[float]) -> Interval:
        """Of the mean; no seed changes the float network."""
        return Interval(*[values[0]] * 3) if self.record.name == FLOAT_NAME else mean_interval(values)


def _ranks(values: Sequence[float], name: str) -> list[int]:
    """1 for the best; equal values share a rank."""
    ordered = sorted(values, reverse=OBJECTIVES[name].direction == "maximize")
    return [ordered.index(value) + 1 for value in values]


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


def in_words(points: Sequence[Confirmed], objectives: Sequence[str]) -> str:
    """One sentence on what became of a front; empty where nothing was trained again."""
    if not points:
        return ""
    name = next(name for name in objectives if name in points[0].unseen)
    sign = 1 if OBJECTIVES[name].direction == "maximize" else -1
    worst = min(points, key=lambda point: sign * (point.again[name].middle - point.record.values[name]))
    change = f"{worst.again[name].middle - worst.record.values[name]:+.2f} {OBJECTIVES[name].unit}".strip()
    return (
        f"Trained again with seeds the search did not use and judged on images it never saw, {sum(p.stays for p in points)} of"
        f" {len(points)} points stay on the front and {sum(p.changes_rank for p in points)} change their rank in {name};"
        f" with other seeds the one that loses most, {point_name(worst.record)}, changes by {change}."
    )


def entries(points: Sequence[Confirmed]) -> list[dict[str, Any]]:
    """The points as JSON data; an interval that nothing is known of is null."""
    return [
        {
            "point": point_name(point.record),
            "again": {name: _entry(interval) for name, interval in point.again.items()},
            "unseen": {name: _entry(interval) for name, interval in point.unseen.items()},
            "latency": _entry(point.latency) if point.latency else None,
            "ranks": dict(zip(("search", "again", "unseen"), point.ranks, strict=True)),
            "stays": point.stays,
            "failed": point.failed,
        }
        for point in points
    ]


def _entry(interval: Interval) -> dict[str, float | None]:
    bounds = {"low": interval.low, "high": interval.high}
    return {"middle": interval.middle, **{name: each if math.isfinite(each) else None for name, each in bounds.items()}}
