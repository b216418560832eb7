"""Replication of the front: its points judged on held-out images, trained with other seeds, and measured again.

A search takes the best of many noisy numbers, so its figures are a little too good. Every fully trained point is judged on
held-out images, and points of the front train again with other seeds. Intervals are at the 95 % level:
Student's for means, of order statistics for medians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from autoq.config.constraints import Constraint
from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import Policy
from autoq.config.spec import Record, Remeasured, Replication, StudySpec
from autoq.study import pareto, selection
from autoq.study.intervals import Interval, mean_interval, median_interval, spearman
from autoq.study.results import FLOAT_NAME, Results, point_name

SHARE = 1 / 8
"""Largest part of the seconds of all trials and baselines that repeated trainings are expected to take."""


class PlannedReplication(NamedTuple):
    """A training to repeat: a point of the front with another seed."""

    record: Record
    policy: Policy
    seed: int


def replication_seeds(spec: StudySpec) -> range:
    """The seeds that the front is trained again with."""
    return range(spec.trial.seed + 1, spec.trial.seed + 1 + spec.replications)


def planned(results: Results, seeds: range) -> list[PlannedReplication]:
    """The trainings to repeat: with one seed the recommended points, the front's ends, the rest; then with the next seed.

    At least one training is repeated, however short the search was. The plan depends on the finished search alone, so an
    interrupted replication continues with the same one.
    """
    left = SHARE * sum(record.seconds for record in results.records)
    plan: list[PlannedReplication] = []
    for seed in seeds:
        for record in by_interest(results):
            left -= record.seconds
            if left >= 0 or not plan:
                plan.append(PlannedReplication(record, Policy.from_dict(record.policy), seed))
    return plan


def by_interest(results: Results) -> list[Record]:
    """The front without the float network, which no seed changes: first the points that a user is most likely to take."""
    points = [record for record in results.front if record.name != FLOAT_NAME]
    ends = [selection.best(points, name) for name in results.objectives] if points else []
    ordered = [*selection.recommended(results).values(), *ends, *points]
    return list({point_name(record): record for record in ordered}.values())


@dataclass(frozen=True)
class ReplicatedPoint:
    """A point of the front after replication.

    Attributes:
        record: The point.
        replicated: Qualities on the search's images with other seeds, by name; empty where no training was repeated.
        held_out: Qualities on held-out images, over all its trainings.
        seeds: Number of repeated trainings.
        latency: Milliseconds, measured again.
        dominated: Whether another fully trained point dominates it, with qualities on held-out images.
        breaks: Constraints that the repeated trainings and latency violate.
        reason: Why a training failed.
    """

    record: Record
    replicated: Mapping[str, Interval]
    held_out: Mapping[str, Interval]
    seeds: int
    latency: Interval | None
    dominated: bool
    breaks: tuple[str, ...]
    reason: str | None

    @property
    def stays(self) -> bool:
        """Whether it is still on the front."""
        return bool(self.held_out) and not self.dominated and not self.breaks


def replicated_qualities(objectives: Sequence[str]) -> tuple[str, ...]:
    """The qualities that are judged again: those among the objectives; PSNR where there is none."""
    return tuple(name for name in objectives if OBJECTIVES[name].quality) or ("psnr",)


def replicated_points(
    results: Results,
    replications: Sequence[Replication],
    remeasured: Remeasured,
    constraints: Sequence[Constraint] = (),
) -> list[ReplicatedPoint]:
    """The points of the front, in its order, whose quality on held-out images is known.

    They are compared with every fully trained point of the study, not only with each other.
    """
    objectives = results.objectives
    points = _judged_apart(results.records, replications, remeasured, replicated_qualities(objectives))
    reference = {} if results.float_record is None else results.float_record.values
    on_front = {point_name(record) for record in results.front}
    every = [results.losses(point.values(apart=True)) for point in points.values()]
    found = []
    for name in sorted(on_front & points.keys(), key=lambda name: points[name].record.values[objectives[0]]):
        point = points[name]
        own = results.losses(point.values(apart=True))
        again = point.values()
        found.append(
            ReplicatedPoint(
                point.record,
                replicated=point.replicated,
                held_out=point.held_out,
                seeds=len(point.complete),
                latency=point.latency,
                dominated=bool(pareto.dominated([own], every, ["minimize"] * len(objectives))[0]),
                breaks=tuple(bound.text for bound in constraints if bound.violation(again, reference or again) > 0),
                reason=next((run.result.reason for run in point.runs if run.result.state != "complete"), None),
            )
        )
    return found


def rank_agreement(records: Sequence[Record], quality: str) -> float | None:
    """Rank correlation between a quality on the search's images and on held-out ones, over all fully trained points.

    The float network is left out. None for fewer than three points, and where all have the same value.
    """
    pairs = [
        (record.values[quality], record.held_out[quality])
        for record in records
        if record.state == "complete" and record.name != FLOAT_NAME and quality in record.held_out
    ]
    return spearman(pairs)


@dataclass(frozen=True)
class _Point:
    """A fully trained point, its trainings with other seeds, and its latency measured again."""

    record: Record
    runs: list[Replication]
    samples: tuple[float, ...]
    qualities: tuple[str, ...]

    @property
    def complete(self) -> list[Replication]:
        return [run for run in self.runs if run.result.state == "complete"]

    @property
    def latency(self) -> Interval | None:
        return median_interval(self.samples) if self.samples else None

    @property
    def replicated(self) -> dict[str, Interval]:
        """Qualities on the search's images, without the search's own training, which was selected."""
        runs = [run.result.values for run in self.complete]
        return {name: mean_interval([values[name] for values in runs]) for name in self.qualities} if runs else {}

    @property
    def held_out(self) -> dict[str, Interval]:
        runs = [self.record.held_out, *(run.result.held_out for run in self.complete)]
        return {name: mean_interval([values[name] for values in runs]) for name in self.qualities}

    def values(self, apart: bool = False) -> dict[str, float]:
        """The point's values with the repeated trainings; `apart`: with the qualities on held-out images."""
        judged = self.held_out if apart else self.replicated
        found = {**self.record.values, **{name: interval.middle for name, interval in judged.items()}}
        if self.latency is not None and not apart:
            found["latency"] = self.latency.middle
        return found


def _judged_apart(
    records: Sequence[Record], replications: Sequence[Replication], remeasured: Remeasured, qualities: tuple[str, ...]
) -> dict[str, _Point]:
    """The feasible, fully trained points whose qualities on held-out images are known, by name."""
    found = {}
    for record in records:
        if record.state == "complete" and record.feasible and record.held_out.keys() >= {*qualities}:
            key = Policy.from_dict(record.policy).hash
            runs = [each for each in replications if each.policy == key]
            found[point_name(record)] = _Point(record, runs, remeasured.samples.get(key, ()), qualities)
    return found


def in_words(points: Sequence[ReplicatedPoint], results: Results) -> str:
    """The outcome of replication in a few sentences; empty where no point was judged on held-out images."""
    if not points:
        return ""
    quality = replicated_qualities(results.objectives)[0]
    stay = f"{sum(point.stays for point in points)} of {len(points)} points stay on the front"
    words = [f"On held-out images, {stay}"]
    if (agreement := rank_agreement(results.records, quality)) is not None:
        words[0] += f" (rank correlation of {quality} over all fully trained points: {agreement:.2f})"
    repeated = [point for point in points if point.replicated]
    if repeated:
        sign = 1 if OBJECTIVES[quality].direction == "maximize" else -1
        worst = min(repeated, key=lambda point: sign * (point.replicated[quality].middle - point.record.values[quality]))
        change = f"{worst.replicated[quality].middle - worst.record.values[quality]:+.2f} {OBJECTIVES[quality].unit}".strip()
        trained = f"{len(repeated)} point{' was' if len(repeated) == 1 else 's were'} trained again with other seeds"
        words.append(f"{trained}; at worst, {quality} changed by {change} ({point_name(worst.record)})")
    if failed := [point for point in points if point.reason]:
        words.append(f"{len(failed)} could not be trained again: {failed[0].reason}")
    return ". ".join(words) + "."


def document(points: Sequence[ReplicatedPoint], results: Results) -> dict[str, Any]:
    """JSON data: the rank correlation between the search's images and held-out ones, and the points of the front."""
    return {
        "rank_agreement": {name: rank_agreement(results.records, name) for name in replicated_qualities(results.objectives)},
        "stay": sum(point.stays for point in points),
        "front": entries(points),
    }


def entries(points: Sequence[ReplicatedPoint]) -> list[dict[str, Any]]:
    """The points as JSON data; an infinite bound is null."""
    return [
        {
            "point": point_name(point.record),
            "replicated": {name: _entry(interval) for name, interval in point.replicated.items()},
            "held_out": {name: _entry(interval) for name, interval in point.held_out.items()},
            "seeds": point.seeds,
            "latency": _entry(point.latency) if point.latency else None,
            "stays": point.stays,
            "breaks": list(point.breaks),
            "reason": point.reason,
        }
        for point in points
    ]


def _entry(interval: Interval) -> dict[str, float | None]:
    bounds = {"low": interval.low, "high": interval.high}
    return {"middle": interval.middle, **{name: each if math.isfinite(each) else None for name, each in bounds.items()}}
