"""Selection of a point of a study: by number, by name, or by a rule.

trial 7, 8/8/8              the point of that name
smallest, fastest           the front's smallest or fastest point among those close to float
compromise                  the front's point nearest to the best of every objective
size                        the front's best point in an objective
pi<=2.2, latency<=30ms then size      the best point in an objective among those within bounds

Close to float means within CLOSE of the study's quality; where no point is, the front's best point in quality counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoq.config.constraints import Constraint, parse_all
from autoq.config.objectives import FIDELITY, OBJECTIVES
from autoq.config.spec import Record
from autoq.errors import InputError
from autoq.study import pareto
from autoq.study.results import FLOAT_NAME, Results, point_name

THEN = " then "
SMALLEST, FASTEST, COMPROMISE = "smallest", "fastest", "compromise"
MOST_NAMES = 20
"""Most names that an error lists."""

EXAMPLE = "type --pick compromise, --pick smallest, --pick 'psnr_drop<=0.1 then size' or --trial 7"

CLOSE = {
    "psnr": "psnr_drop<=0.1",
    "ssim": "ssim_drop<=0.003",
    FIDELITY: "fidelity>=40",
    "niqe": "niqe_drop<=0.1",
    "pi": "pi_drop<=0.1",
}
"""Quality -> bound for a point that most people would not tell apart from the float network."""


def by_number(records: Sequence[Record], number: int) -> Record:
    """A trial that trained fully. Raises InputError for any other."""
    return by_name(records, f"trial {number}")


def by_name(records: Sequence[Record], name: str) -> Record:
    """A trial or baseline that trained fully, by its name. Raises InputError for any other."""
    complete = {point_name(record): record for record in records if record.state == "complete"}
    if name in complete:
        return complete[name]
    for record in records:
        if point_name(record) == name:
            raise InputError(f"'{name}' cannot be exported: {record.state}, {record.reason}; {_those(complete)}")
    raise InputError(f"the study has no point '{name}'; {_those(complete)}")


def by_rule(results: Results, rule: str) -> Record:
    """The point that a rule selects; of equal ones the first of the front. Raises InputError where there is none."""
    if rule in {point_name(record) for record in results.records}:
        return by_name(results.records, rule)
    front = [record for record in results.front if record.name != FLOAT_NAME]
    if not front:
        raise InputError(f"--pick '{rule}': the front holds nothing but the float network; {EXAMPLE}")
    if rule in (SMALLEST, FASTEST, COMPROMISE):
        return recommended(results)[rule]
    *bounds, goal = rule.rsplit(THEN, 1) if THEN in rule else (rule,)
    if goal.strip() not in OBJECTIVES:
        raise InputError(f"--pick '{rule}': no such rule, objective or point; {EXAMPLE}")
    kept = parse_all(bounds[0].split(",")) if bounds else ()
    within = [record for record in front if _keeps(record, kept, results.float_record.values if results.float_record else {})]
    if not within:
        raise InputError(f"--pick '{rule}': no point of the front keeps {bounds[0]}; loosen it, or see autoq report")
    goal = goal.strip()
    missing = [point_name(record) for record in within if goal not in record.values]
    if missing:
        raise InputError(f"--pick '{rule}': {goal} was not measured in that study; {EXAMPLE}")
    return best(within, goal)


def recommended(results: Results) -> dict[str, Record]:
    """The points most users want, by rule: SMALLEST, FASTEST, COMPROMISE. Empty where the front is the float network alone."""
    objectives = results.objectives
    front = [record for record in results.front if record.name != FLOAT_NAME]
    if not front:
        return {}
    float_record, kept = results.float_record, parse_all([close_to_float(objectives)])
    close = [record for record in front if float_record is None or _keeps(record, kept, float_record.values)]
    if not close:
        close = [best(front, _quality(objectives))]
    fast = "latency" if all("latency" in record.values for record in close) else "bops"
    return {
        SMALLEST: min(close, key=lambda record: record.values["size"]),
        FASTEST: min(close, key=lambda record: (record.values[fast], record.values["size"])),
        COMPROMISE: front[_compromise([results.losses(record.values) for record in front])],
    }


def best(records: Sequence[Record], objective: str) -> Record:
    """The best record in an objective; of equal ones the first."""
    sign = 1 if OBJECTIVES[objective].direction == "minimize" else -1
    return min(records, key=lambda record: sign * record.values[objective])


def close_to_float(objectives: Sequence[str]) -> str:
    """The bound of `recommended` on a study's first quality, as text."""
    return CLOSE[_quality(objectives)]


def _quality(objectives: Sequence[str]) -> str:
    return next((name for name in objectives if name in CLOSE), FIDELITY)


def _keeps(record: Record, bounds: Sequence[Constraint], float_values: Mapping[str, float]) -> bool:
    for bound in bounds:
        if bound.objective not in record.values:
            raise InputError(f"--pick: {bound.objective} was not measured in that study; {EXAMPLE}")
        if bound.name != bound.objective and not float_values:
            raise InputError(f"--pick: {bound.name} needs the float network, which that study did not measure; {EXAMPLE}")
    return all(bound.violation(record.values, float_values) <= 0 for bound in bounds)


def _compromise(values: Sequence[Sequence[float]]) -> int:
    """The point nearest to the best of every objective, each counted from 0 (best of the front) to 1 (worst)."""
    points = pareto.losses(values, ["minimize"] * len(values[0]))
    span = np.ptp(points, axis=0)
    shares = (points - points.min(0)) / np.where(span > 0, span, 1)
    return int(np.argmin(np.linalg.norm(shares, axis=1)))


def _those(complete: Mapping[str, Record]) -> str:
    numbers = sorted(record.number for record in complete.values() if record.number is not None)
    baselines = [name for name, record in complete.items() if record.number is None]
    options = [f"{option} with one of {_listed(names)}" for option, names in (("--trial", numbers), ("--pick", baselines)) if names]
    return f"type {', or '.join(options)}" if options else "no point trained fully"


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:MOST_NAMES])) + (" ..." if len(names) > MOST_NAMES else "")
