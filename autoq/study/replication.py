"""Which points of a front train again with other seeds, within a share of the search's own time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from autoq.config.policy import Policy
from autoq.config.spec import Record, StudySpec
from autoq.study import results, selection
from autoq.study.results import FLOAT_NAME

SHARE = 1 / 6
"""Of the seconds of work on trials and baselines, at most, that the trainings are expected to take. With the patches and the
calibration of every other seed it is a third.
"""


class Replication(NamedTuple):
    """A point of the front that trains again with a seed."""

    record: Record
    policy: Policy
    seed: int


def planned(records: Sequence[Record], spec: StudySpec) -> list[Replication]:
    """The trainings to repeat: first all seeds of the recommended points, then of the front's ends, then of the rest.

    It depends on the finished search alone, so an interrupted replication continues with the same plan. They come back seed
    by seed: what a seed prepares serves all its points.
    """
    left = SHARE * sum(record.seconds for record in records)
    plan = []
    for record in _by_interest(records, spec.objectives):
        for number in range(spec.confirm):
            left -= record.seconds
            if left >= 0:
                plan.append(Replication(record, Policy.from_dict(record.policy), spec.trial.seed + 1 + number))
    return sorted(plan, key=lambda each: each.seed)


def _by_interest(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The front without the float network, which no seed changes: what a user would take first."""
    front = [record for record in results.front(records, objectives) if record.name != FLOAT_NAME]
    ends = [min(front, key=lambda record: results.losses(record.values, [name])) for name in objectives] if front else []
    ordered = [*selection.recommended(records, objectives).values(), *ends, *front]
    return list({results.point_name(record): record for record in ordered}.values())
