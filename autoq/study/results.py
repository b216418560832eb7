"""What a study found: front, hypervolume, tables, the JSON document. Records in, plain data out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoq.config.objectives import FIDELITY, OBJECTIVES, reference_value
from autoq.config.spec import Record, Sensitivity, StudySpec
from autoq.study import pareto

if TYPE_CHECKING:
    import pandas as pd

FLOAT_NAME = "float"
NOT_FASTER = "not faster than float"


def front(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """Non-dominated feasible trials and baselines, by the first objective."""
    candidates = [record for record in records if record.state == "complete" and record.feasible]
    values = [[record.values[name] for name in objectives] for record in candidates]
    return [candidates[index] for index in pareto.front(values, [OBJECTIVES[name].direction for name in objectives])]


def reference_point(records: Iterable[Record], objectives: Sequence[str]) -> list[float] | None:
    """The hypervolume's reference: a little worse than the float baseline. None while that is not measured."""
    reference = float_baseline(records)
    return None if reference is None else [reference_value(name, reference.values[name]) for name in objectives]


def losses(values: Mapping[str, float], objectives: Sequence[str]) -> list[float]:
    """Objectives as numbers that are all minimized."""
    return minimized([values[name] for name in objectives], objectives)


def minimized(point: Sequence[float], objectives: Sequence[str]) -> list[float]:
    """A point of objective space with every coordinate minimized."""
    return [float(each) for each in pareto.losses([point], [OBJECTIVES[name].direction for name in objectives])[0]]


def float_baseline(records: Iterable[Record]) -> Record | None:
    """The float network's record, where it was measured."""
    return next((record for record in records if record.name == FLOAT_NAME and record.state == "complete"), None)


def faster_than_float(record: Record, exact: Record | None) -> bool | None:
    """Whether a point takes less time than the float network; None for that one itself, and where latencies are not known."""
    if exact is None or record.name == FLOAT_NAME or "latency" not in exact.values.keys() & record.values.keys():
        return None
    return record.values["latency"] < exact.values["latency"]


def baselines_alone(records: Sequence[Record], objectives: Sequence[str]) -> float | None:
    """Hypervolume without any trial: what the search has to beat."""
    return hypervolume([record for record in records if record.source == "baseline"], objectives)


def seeds_alone(records: Sequence[Record], sensitivity: Sensitivity | None) -> list[Record]:
    """The baselines, and of the trials those that the sensitivity of the stages proposed."""
    seeds = len(sensitivity.initial_trials) if sensitivity else 0
    return [record for record in records if record.number is None or record.number < seeds]


def prediction_agreement(records: Iterable[Record], sensitivity: Sensitivity | None) -> float | None:
    """Rank correlation (Spearman) of what stages one at a time predicted for the seeds with the error after training.

    None for fewer than three seeds that trained fully.
    """
    trained = {record.number: record.values[FIDELITY] for record in records if record.state == "complete"}
    pairs = [(loss, -trained[n]) for n, loss in enumerate(sensitivity.predicted if sensitivity else ()) if n in trained]
    return spearman(pairs)


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation. None for fewer than three pairs, and where nothing differs."""
    import pandas as pd

    ranks = pd.DataFrame(pairs).rank()
    if len(pairs) < 3 or (ranks.nunique() == 1).any():
        return None
    return float(ranks[0].corr(ranks[1]))


def hypervolume(records: Sequence[Record], objectives: Sequence[str]) -> float | None:
    """Share-like volume of the front of `records`, against the float baseline among them."""
    reference = reference_point(records, objectives)
    if reference is None:
        return None
    values = [[record.values[name] for name in objectives] for record in front(records, objectives)]
    return pareto.hypervolume(values, [OBJECTIVES[name].direction for name in objectives], reference)


def comparison(records: Sequence[Record], others: Sequence[Record], objectives: Sequence[str]) -> dict[str, float] | None:
    """A front held against another of the same network: both hypervolumes, with one reference, and of each front the share
    that some point of the other dominates. None where either study has no float baseline.
    """
    reference = reference_point(records, objectives)
    if reference is None or float_baseline(others) is None:
        return None
    directions = [OBJECTIVES[name].direction for name in objectives]
    own, other = ([[each.values[name] for name in objectives] for each in front(part, objectives)] for part in (records, others))
    return {
        "hypervolume": pareto.hypervolume(own, directions, reference),
        "hypervolume_other": pareto.hypervolume(other, directions, reference),
        "hypervolume_together": pareto.hypervolume([*own, *other], directions, reference),
        "dominated": float(pareto.dominated(own, other, directions).mean()),
        "dominated_other": float(pareto.dominated(other, own, directions).mean()),
    }


def document(
    name: str,
    spec: StudySpec,
    records: Sequence[Record],
    seconds: float,
    sensitivity: Sensitivity | None = None,
    confirmed: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    recommended: Mapping[str, Record] | None = None,
) -> dict[str, Any]:
    """The JSON document of a search: definition, trials, front, baselines, hypervolume. confirmed: `confirmation.document`.

    latency: `speed.Speed.document`. recommended: `pick.recommended`.
    """
    exact = float_baseline(records)
    objectives = spec.objectives
    of_seeds = seeds_alone(records, sensitivity)
    trials = sorted((record for record in records if record.source == "trial"), key=lambda record: record.number or 0)
    return {
        "study": name,
        "seed": spec.trial.seed,
        "target": spec.trial.target,
        "seconds": round(seconds, 1),
        "objectives": [
            {"name": name, "direction": OBJECTIVES[name].direction, "unit": OBJECTIVES[name].unit} for name in objectives
        ],
        "trials": [_entry(record, exact) for record in trials],
        "front": [_entry(record, exact) for record in front(records, objectives)],
        "baselines": {record.name: record.values for record in records if record.source == "baseline"},
        "seeds_alone": {
            "front": [_entry(record, exact) for record in front(of_seeds, objectives)],
            "hypervolume": hypervolume(of_seeds, objectives),
        }
        if sensitivity is not None
        else None,
        "recommended": {rule: point_name(record) for rule, record in (recommended or {}).items()},
        "confirmed": confirmed,
        "latency": latency,
        "hypervolume": hypervolume(records, objectives),
        "reference_point": reference_point(records, objectives),
    }


def point_name(record: Record) -> str:
    """`trial 7`, or the baseline's name."""
    return record.name or f"trial {record.number}"


def shown(name: str, value: float) -> str:
    """A value with its unit; sizes in KiB."""
    unit = OBJECTIVES[name].unit
    if unit == "bytes":
        return f"{value / 1024:.0f} KiB"
    return f"{value:.1f} {unit}" if not OBJECTIVES[name].quality else f"{value:.2f} {unit}".strip()


def in_words(record: Record, objectives: Sequence[str]) -> str:
    """One line: values with units, or how it failed."""
    if record.state == "pruned":
        return str(record.reason)
    if record.state != "complete":
        return f"{record.state}: {record.reason}"
    return ", ".join(f"{name} {shown(name, record.values[name])}" for name in objectives)


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Records as rows: point, state, every value measured (bytes, ms, dB), bits by stage, steps, seconds, reason, policy."""
    import pandas as pd

    measured = [name for name in OBJECTIVES if any(name in record.values for record in records)]
    rows = [
        {
            "point": point_name(record),
            "state": record.state,
            **{name: record.values.get(name) for name in measured},
            "bits": record.label,
            "steps": record.steps,
            "seconds": record.seconds,
            "reason": record.reason,
            "policy": record.policy,
        }
        for record in records
    ]
    columns = ["point", "state", *measured, "bits", "steps", "seconds", "reason", "policy"]
    return pd.DataFrame(rows, columns=columns)


def _entry(record: Record, exact: Record | None) -> dict[str, Any]:
    entry = {name: getattr(record, name) for name in ("number", "state", "source", "policy", "values", "steps", "seconds")}
    for name in ("name", "reason"):
        if getattr(record, name) is not None:
            entry[name] = getattr(record, name)
    if (faster := faster_than_float(record, exact)) is not None:
        entry["faster_than_float"] = faster
    return entry


def to_json(data: Any) -> str:
    """Strict JSON: no NaN, no infinity."""
    return json.dumps(data, indent=2, allow_nan=False)
