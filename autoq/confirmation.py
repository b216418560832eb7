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
from autoq.constraints import Constraint
from autoq.findings import FLOAT_NAME, losses, point_name
from autoq.objectives import OBJECTIVES, score
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
    dominated: whether another point is as good in everything and better in something, with the qualities on other images
    and the latency found again. breaks: bounds that are broken with the qualities trained again and that latency. reason:
    why a training failed. Where all of them did there are no qualities and no ranks.
    """

    record: Record
    again: Mapping[str, Interval]
    unseen: Mapping[str, Interval]
    latency: Interval | None
    ranks: tuple[int, ...]
    dominated: bool
    breaks: tuple[str, ...]
    reason: str | None

    @property
    def stays(self) -> bool:
        return bool(self.ranks) and not self.dominated and not self.breaks

    @property
    def changes_rank(self) -> bool:
        return len(set(self.ranks)) > 1


def confirmed_qualities(objectives: Sequence[str]) -> tuple[str, ...]:
    """What is judged again: the objectives' qualities; PSNR where they have none but what follows from others."""
    return tuple(name for name in objectives if OBJECTIVES[name].quality and not OBJECTIVES[name].relative) or ("psnr",)


def confirmed(
    front: Sequence[Record],
    confirmations: Sequence[Confirmation],
    remeasured: Remeasured,
    objectives: Sequence[str],
    constraints: Sequence[Constraint] = (),
    float_values: Mapping[str, float] | None = None,
) -> list[Confirmed]:
    """The points of a front that were trained again, in its order; the float network, which nothing changes, among them."""
    qualities = confirmed_qualities(objectives)
    runs: dict[str, list[Confirmation]] = {}
    for each in confirmations:
        runs.setdefault(each.policy, []).append(each)
    hashed = [(record, Policy.from_dict(record.policy).hash) for record in front]
    points = [_Trained(record, runs[name], remeasured.samples.get(name)) for record, name in hashed if name in runs]
    known = [point for point in points if point.complete]
    others = [losses(point.values(qualities, unseen=True), objectives) for point in known]
    first = qualities[0]
    ranks = [
        _ranks([point.record.values[first] for point in known], first),
        _ranks([point.quality(first).middle for point in known], first),
        _ranks([point.quality(first, unseen=True).middle for point in known], first),
    ]
    worse = pareto.dominated(others, others, ["minimize"] * len(objectives))
    found = []
    for point in points:
        place = known.index(point) if point.complete else None
        values = point.values(qualities)
        found.append(
            Confirmed(
                point.record,
                again={} if place is None else {name: point.quality(name) for name in qualities},
                unseen={} if place is None else {name: point.quality(name, unseen=True) for name in qualities},
                latency=point.latency,
                ranks=() if place is None else tuple(column[place] for column in ranks),
                dominated=False if place is None else bool(worse[place]),
                breaks=tuple(each.text for each in constraints if each.violation(values, float_values or values) > 0),
                reason=next((each.result.reason for each in point.runs if each.result.state != "complete"), None),
            )
        )
    return found


@dataclass(frozen=True)
class _Trained:
    """A point of the front, its trainings with other seeds, and its latency measured again."""

    record: Record
    runs: list[Confirmation]
    samples: tuple[float, ...] | None

    @property
    def complete(self) -> list[Confirmation]:
        return [each for each in self.runs if each.result.state == "complete"]

    @property
    def latency(self) -> Interval | None:
        return median_interval(self.samples) if self.samples else None

    def quality(self, name: str, unseen: bool = False) -> Interval:
        """Mean over the trainings; no seed changes the float network."""
        values = [(each.unseen if unseen else each.result.values)[name] for each in self.complete]
        return Interval(*[values[0]] * 3) if self.record.name == FLOAT_NAME else mean_interval(values)

    def values(self, qualities: Sequence[str], unseen: bool = False) -> dict[str, float]:
        """What the point is worth now, as far as it was found again."""
        found = dict(self.record.values)
        if self.complete:
            found |= {name: self.quality(name, unseen).middle for name in qualities}
        if self.latency is not None:
            found["latency"] = self.latency.middle
        if {"psnr", "latency"} <= found.keys():
            found["score"] = score(found["psnr"], found["latency"])
        return found


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


def in_words(points: Sequence[Confirmed]) -> str:
    """One sentence on what became of a front; empty where nothing was trained again."""
    known = [point for point in points if point.ranks]
    lost = [point for point in points if not point.ranks]
    failed = f" {len(lost)} could not be trained again: {lost[0].reason}." if lost else ""
    if not known:
        return failed.strip()
    name = next(iter(known[0].unseen))
    sign = 1 if OBJECTIVES[name].direction == "maximize" else -1
    worst = min(known, key=lambda point: sign * (point.again[name].middle - point.record.values[name]))
    change = f"{worst.again[name].middle - worst.record.values[name]:+.2f} {OBJECTIVES[name].unit}".strip()
    return (
        f"Trained again with seeds the search did not use and judged on images it never saw, {sum(p.stays for p in known)} of"
        f" {len(known)} points stay on the front and {sum(p.changes_rank for p in known)} change their rank in {name};"
        f" with other seeds the one that loses most, {point_name(worst.record)}, changes by {change}.{failed}"
    )


def entries(points: Sequence[Confirmed]) -> list[dict[str, Any]]:
    """The points as JSON data; an interval that nothing is known of is null."""
    return [
        {
            "point": point_name(point.record),
            "again": {name: _entry(interval) for name, interval in point.again.items()},
            "unseen": {name: _entry(interval) for name, interval in point.unseen.items()},
            "latency": _entry(point.latency) if point.latency else None,
            "ranks": dict(zip(("search", "again", "unseen"), point.ranks, strict=False)),
            "stays": point.stays,
            "breaks": list(point.breaks),
            "reason": point.reason,
        }
        for point in points
    ]


def _entry(interval: Interval) -> dict[str, float | None]:
    bounds = {"low": interval.low, "high": interval.high}
    return {"middle": interval.middle, **{name: each if math.isfinite(each) else None for name, each in bounds.items()}}
