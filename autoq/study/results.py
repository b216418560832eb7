"""The results of a study: front, hypervolume, tables, the JSON document."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoq.config.objectives import FIDELITY, OBJECTIVES, Direction, reference_value
from autoq.config.spec import Record, Sensitivity, StudySpec
from autoq.study import pareto
from autoq.study.intervals import spearman

if TYPE_CHECKING:
    import pandas as pd

FLOAT_NAME = "float"
NOT_FASTER = "not faster than float"


@dataclass(frozen=True)
class Results:
    """Finished trials and baselines of a study, compared by its objectives.

    Attributes:
        records: The trials, baselines and finetuned points, in the order they ended.
        objectives: Names of the objectives.
    """

    records: Sequence[Record]
    objectives: tuple[str, ...]

    @functools.cached_property
    def front(self) -> list[Record]:
        """Non-dominated feasible points, by the first objective."""
        candidates = [record for record in self.records if record.state == "complete" and record.feasible]
        return [candidates[index] for index in pareto.front(self._values(candidates), self._directions)]

    @functools.cached_property
    def float_record(self) -> Record | None:
        """The float network's record, where it was measured."""
        return next((record for record in self.records if record.name == FLOAT_NAME and record.state == "complete"), None)

    @functools.cached_property
    def reference_point(self) -> list[float] | None:
        """The reference point of the hypervolume, a little worse than the float network. None before that is measured."""
        float_record = self.float_record
        return None if float_record is None else [reference_value(name, float_record.values[name]) for name in self.objectives]

    @functools.cached_property
    def hypervolume(self) -> float | None:
        """Hypervolume of the front. None before the float network is measured."""
        if self.reference_point is None:
            return None
        return pareto.hypervolume(self._values(self.front), self._directions, self.reference_point)

    def losses(self, values: Mapping[str, float]) -> list[float]:
        """Values of the objectives as numbers that are all minimized."""
        return self.minimized([values[name] for name in self.objectives])

    def minimized(self, point: Sequence[float]) -> list[float]:
        """A point of objective space with every coordinate minimized."""
        return [float(each) for each in pareto.losses([point], self._directions)[0]]

    def baselines_alone(self) -> Results:
        """The results without any trial, which a search has to improve on."""
        return Results([record for record in self.records if record.source == "baseline"], self.objectives)

    def initial_alone(self, sensitivity: Sensitivity | None) -> Results:
        """The baselines and the initial trials, which the sensitivity of the stages proposed."""
        count = len(sensitivity.initial_trials) if sensitivity else 0
        initial = [each for each in self.records if each.source == "baseline" or (each.number is not None and each.number < count)]
        return Results(initial, self.objectives)

    def comparison(self, other: Results) -> dict[str, float] | None:
        """This front compared with another one of the same network.

        Returns:
            Both hypervolumes and that of both together, with one reference point, and for each front the share of points
            that the other dominates. None where either has no float network.
        """
        reference, directions = self.reference_point, self._directions
        if reference is None or other.float_record is None:
            return None
        own, others = self._values(self.front), self._values(other.front)
        return {
            "hypervolume": pareto.hypervolume(own, directions, reference),
            "hypervolume_other": pareto.hypervolume(others, directions, reference),
            "hypervolume_together": pareto.hypervolume([*own, *others], directions, reference),
            "dominated": float(pareto.dominated(own, others, directions).mean()),
            "dominated_other": float(pareto.dominated(others, own, directions).mean()),
        }

    def _values(self, records: Iterable[Record]) -> list[list[float]]:
        return [[record.values[name] for name in self.objectives] for record in records]

    @property
    def _directions(self) -> list[Direction]:
        return [OBJECTIVES[name].direction for name in self.objectives]


def faster_than_float(record: Record, float_record: Record | None) -> bool | None:
    """Whether a point takes less time than the float network; None for the float network itself, or without latencies."""
    if float_record is None or record.name == FLOAT_NAME or "latency" not in float_record.values.keys() & record.values.keys():
        return None
    return record.values["latency"] < float_record.values["latency"]


def prediction_agreement(records: Iterable[Record], sensitivity: Sensitivity | None) -> float | None:
    """Rank correlation (Spearman) of the initial trials' predicted losses with their errors after training.

    None for fewer than three initial trials that trained fully.
    """
    trained = {record.number: record.values[FIDELITY] for record in records if record.state == "complete"}
    pairs = [(loss, -trained[n]) for n, loss in enumerate(sensitivity.predicted if sensitivity else ()) if n in trained]
    return spearman(pairs)


def document(
    name: str,
    spec: StudySpec,
    results: Results,
    seconds: float,
    sensitivity: Sensitivity | None = None,
    replication: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
    recommended: Mapping[str, Record] | None = None,
) -> dict[str, Any]:
    """The JSON document of a search.

    Args:
        name: Name of the study.
        spec: Its definition.
        results: Its trials and baselines.
        seconds: Duration of the search.
        sensitivity: Sensitivity of the stages, where the study has initial trials.
        replication: `replication.document`.
        latency: `attribution.Speed.document`.
        recommended: `selection.recommended`.
    """
    float_record, initial = results.float_record, results.initial_alone(sensitivity)
    trials = sorted((record for record in results.records if record.source == "trial"), key=lambda record: record.number or 0)
    return {
        "study": name,
        "seed": spec.trial.seed,
        "target": spec.trial.target,
        "seconds": round(seconds, 1),
        "objectives": [
            {"name": name, "direction": OBJECTIVES[name].direction, "unit": OBJECTIVES[name].unit} for name in results.objectives
        ],
        "trials": [_entry(record, float_record) for record in trials],
        "front": [_entry(record, float_record) for record in results.front],
        "baselines": {record.name: record.values for record in results.records if record.source == "baseline"},
        "initial_trials_alone": None
        if sensitivity is None
        else {"front": [_entry(record, float_record) for record in initial.front], "hypervolume": initial.hypervolume},
        "recommended": {rule: point_name(record) for rule, record in (recommended or {}).items()},
        "replication": replication,
        "latency": latency,
        "hypervolume": results.hypervolume,
        "reference_point": results.reference_point,
    }


def point_name(record: Record) -> str:
    """`trial 7`, or the name of another point."""
    return record.name or f"trial {record.number}"


def finetuned_name(record: Record) -> str:
    """The name of a point after its finetuning: `trial 7, finetuned`."""
    return f"{point_name(record)}, finetuned"


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


def _entry(record: Record, float_record: Record | None) -> dict[str, Any]:
    entry = {name: getattr(record, name) for name in ("number", "state", "source", "policy", "values", "steps", "seconds")}
    for name in ("name", "reason"):
        if getattr(record, name) is not None:
            entry[name] = getattr(record, name)
    if (faster := faster_than_float(record, float_record)) is not None:
        entry["faster_than_float"] = faster
    return entry


def to_json(data: Any) -> str:
    """Strict JSON: no NaN, no infinity."""
    return json.dumps(data, indent=2, allow_nan=False)
