"""Points of the front judged on other images, trained with other seeds, and measured again: which, and what came of it.

A search takes the best of many noisy numbers, so what it reports is a little too good. Every fully trained point is judged on
images that no suggestion depends on; points of the front train again with other seeds. Intervals of
means are Student's, 95 %; those of medians are of order statistics, at least 95 % where there are enough samples, else all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from autoq.config.constraints import Constraint
from autoq.config.objectives import OBJECTIVES
from autoq.config.policy import Policy
from autoq.config.spec import Confirmation, Record, Remeasured, StudySpec
from autoq.study import pareto, selection
from autoq.study.intervals import Interval, mean_interval, median_interval
from autoq.study.results import FLOAT_NAME, float_baseline, front, losses, point_name, spearman

SHARE = 1 / 8
"""Largest part of the seconds of all trials and baselines that repeated trainings are expected to take."""


class Replication(NamedTuple):
    """A point of the front that trains again with a seed."""

    record: Record
    policy: Policy
    seed: int


def planned(records: Sequence[Record], spec: StudySpec) -> list[Replication]:
    """The trainings to repeat: with one seed the recommended points, the front's ends, the rest; then with the next seed.

    At least one training is repeated, however short the search was. The plan depends on the finished search alone, so an
    interrupted replication continues with the same one.
    """
    left = SHARE * sum(record.seconds for record in records)
    plan: list[Replication] = []
    for number in range(spec.replications):
        for record in _by_interest(records, spec.objectives):
            left -= record.seconds
            if left >= 0 or not plan:
                plan.append(Replication(record, Policy.from_dict(record.policy), spec.trial.seed + 1 + number))
    return plan


def _by_interest(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The front without the float network, which no seed changes: what a user would take first."""
    points = [record for record in front(records, objectives) if record.name != FLOAT_NAME]
    ends = [min(points, key=lambda record: losses(record.values, [name])) for name in objectives] if points else []
    ordered = [*selection.recommended(records, objectives).values(), *ends, *points]
    return list({point_name(record): record for record in ordered}.values())


@dataclass(frozen=True)
class Confirmed:
    """A point of the front, judged once more.

    replicated: qualities on the search's images with other seeds, by name; empty where no training was repeated. held_out:
    qualities on images that no suggestion depends on, over all its trainings. seeds: how many trainings were repeated.
    latency: ms, measured again. dominated: whether another fully trained point is as good in everything and better in
    something, with the qualities on held-out images. breaks: bounds that the repeated trainings and that latency break.
    reason: why a training failed.
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
        return bool(self.held_out) and not self.dominated and not self.breaks


def confirmed_qualities(objectives: Sequence[str]) -> tuple[str, ...]:
    """What is judged again: the objectives' qualities; PSNR where they have none."""
    return tuple(name for name in objectives if OBJECTIVES[name].quality) or ("psnr",)


def confirmed(
    records: Sequence[Record],
    confirmations: Sequence[Confirmation],
    remeasured: Remeasured,
    objectives: Sequence[str],
    constraints: Sequence[Constraint] = (),
) -> list[Confirmed]:
    """The points of the front of `records`, in its order, where their quality on held-out images is known.

    They are held against every fully trained point of the study, not against each other alone.
    """
    qualities = confirmed_qualities(objectives)
    points = _judged_apart(records, confirmations, remeasured, qualities)
    exact = float_baseline(records)
    reference = {} if exact is None else exact.values
    on_front = {point_name(record) for record in front(records, objectives)}
    every = [losses(point.values(apart=True), objectives) for point in points.values()]
    found = []
    for name in sorted(on_front & points.keys(), key=lambda name: points[name].record.values[objectives[0]]):
        point = points[name]
        own = losses(point.values(apart=True), objectives)
        again = point.values()
        found.append(
            Confirmed(
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
    """Spearman's correlation between a quality on the search's images and on held-out ones, over all fully trained points.

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
    runs: list[Confirmation]
    samples: tuple[float, ...]
    qualities: tuple[str, ...]

    @property
    def complete(self) -> list[Confirmation]:
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
        """What the point is worth now: as repeated, or on held-out images."""
        judged = self.held_out if apart else self.replicated
        found = {**self.record.values, **{name: interval.middle for name, interval in judged.items()}}
        if self.latency is not None and not apart:
            found["latency"] = self.latency.middle
        return found


def _judged_apart(
    records: Sequence[Record], confirmations: Sequence[Confirmation], remeasured: Remeasured, qualities: tuple[str, ...]
) -> dict[str, _Point]:
    """Every feasible, fully trained point whose qualities on held-out images are known, by name."""
    found = {}
    for record in records:
        if record.state == "complete" and record.feasible and record.held_out.keys() >= {*qualities}:
            key = Policy.from_dict(record.policy).hash
            runs = [each for each in confirmations if each.policy == key]
            found[point_name(record)] = _Point(record, runs, remeasured.samples.get(key, ()), qualities)
    return found


def in_words(points: Sequence[Confirmed], records: Sequence[Record], objectives: Sequence[str]) -> str:
    """A few sentences on what became of a front; empty where nothing was judged on held-out images."""
    if not points:
        return ""
    quality = confirmed_qualities(objectives)[0]
    stay = f"{sum(point.stays for point in points)} of {len(points)} points stay on the front"
    words = [f"On images that no suggestion depends on, {stay}"]
    if (agreement := rank_agreement(records, quality)) is not None:
        words[0] += f" (rank correlation of {quality} over all fully trained points: {agreement:.2f})"
    repeated = [point for point in points if point.replicated]
    if repeated:
        sign = 1 if OBJECTIVES[quality].direction == "maximize" else -1
        worst = min(repeated, key=lambda point: sign * (point.replicated[quality].middle - point.record.values[quality]))
        change = f"{worst.replicated[quality].middle - worst.record.values[quality]:+.2f} {OBJECTIVES[quality].unit}".strip()
        trained = (
            f"{len(repeated)} of them were trained again with other seeds"
            if len(repeated) < len(points)
            else ("All were trained again with other seeds")
        )
        words.append(f"{trained}; the largest loss is {change} ({point_name(worst.record)})")
    if failed := [point for point in points if point.reason]:
        words.append(f"{len(failed)} could not be trained again: {failed[0].reason}")
    return ". ".join(words) + "."


def document(points: Sequence[Confirmed], records: Sequence[Record], objectives: Sequence[str]) -> dict[str, Any]:
    """JSON data: how the search's images rank points as held-out images do, and the points of the front."""
    return {
        "rank_agreement": {name: rank_agreement(records, name) for name in confirmed_qualities(objectives)},
        "stay": sum(point.stays for point in points),
        "front": entries(points),
    }


def entries(points: Sequence[Confirmed]) -> list[dict[str, Any]]:
    """The points as JSON data; an interval that nothing is known of is null."""
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
