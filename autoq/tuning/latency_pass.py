"""The latency of every graph structure of a study, measured alone: before its trials, and of its front again after them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence

from autoq.config.events import Events
from autoq.config.policy import Policy, all_float
from autoq.config.space import SearchSpace
from autoq.config.space_file import parse_space
from autoq.config.spec import Remeasured, StudySpec
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.analytic import milliseconds
from autoq.costs.latency.measure import policy_key
from autoq.costs.latency.table import Entry, LatencyTable, with_prediction
from autoq.errors import InputError
from autoq.export.onnx import Graph
from autoq.graph.quantize import place
from autoq.study.replication import planned
from autoq.study.study import Study, study_facts
from autoq.targets import load_target, target_info
from autoq.trial.context import TrialContext, prepare, runtime_file
from autoq.tuning.baselines import baselines

AGAIN_ROUNDS = 6
"""Times that every structure of the repeated points is measured again."""


def _structures(spec: StudySpec, space: SearchSpace) -> latencies.Structures:
    """The structures that a study's baselines and space can produce, or a sample; the float network's comes first."""
    context = prepare(spec.trial)
    return latencies.structures(context.traced, space, context.execution, baselines(space.facts, spec.first_last_16).values())


def check_table(table: LatencyTable, spec: StudySpec) -> None:
    """Raise InputError if an earlier study's table does not serve this one."""
    table.check(spec.trial.model, spec.trial.scale, spec.trial.target, spec.frame, spec.latency_threads)
    if not target_info(spec.trial.target).latency:
        return
    space = parse_space(spec.space, study_facts(spec), "space")
    wanted = _structures(spec, space)
    missing = [key for key in wanted.policies if key not in table.entries]
    predicted = not wanted.complete and table.rest is not None and table.rest.integers.keys() == space.choices.keys()
    if missing and not predicted:
        what = f"lacks {len(missing)} structures of this network and space"
        raise InputError(f"latency table: {what}; measure again without --latency-table")


def measure_latencies(study: Study, graph: Graph, events: Events) -> LatencyTable:
    """Measure every structure the study can produce, alone, before anything else runs; nothing where none is offered.

    Where the target models its latency, the model's values take the place of samples.
    """
    spec = study.spec
    table = LatencyTable(
        model=spec.trial.model,
        scale=spec.trial.scale,
        target=spec.trial.target,
        runtime=load_target(spec.trial.target).version(),
        frame=spec.frame,
        threads=spec.latency_threads,
        machine=latencies.machine(),
        entries={},
    )
    if not target_info(spec.trial.target).latency:
        return table
    policies, complete = _structures(spec, study.space)
    events.phase(f"{_verb(spec)} the latency of {len(policies)} graph structures")
    float_key, *keys = policies  # the float baseline comes first
    float_samples, samples = _measure(study, graph, {key: policies[key] for key in keys}, policies[float_key], events)
    found = _entries(prepare(spec.trial), policies, {float_key: float_samples, **samples})
    table = table.model_copy(update={"entries": found})
    return table if complete else _predicting(table, study, events)


def measure_more(study: Study, graph: Graph, table: LatencyTable, policies: Sequence[Policy], events: Events) -> LatencyTable:
    """A table with the structures of policies measured, and with its prediction fitted to them, too."""
    context = prepare(study.spec.trial)
    wanted = {policy_key(context.traced, policy, context.execution): policy for policy in policies}
    missing = {key: policy for key, policy in wanted.items() if key not in table.entries}
    if not missing or not table.entries:
        return table
    events.phase(f"{_verb(study.spec)} the latency of {len(missing)} more graph structures")
    exact = all_float(study.space.choices)
    float_key = policy_key(context.traced, exact, context.execution)
    float_samples, samples = _measure(study, graph, missing, exact, events)
    drift = table.entries[float_key].ms / statistics.median(float_samples)
    samples = {key: [drift * value for value in values] for key, values in samples.items()}
    table = table.model_copy(update={"entries": {**table.entries, **_entries(context, missing, samples)}})
    return _predicting(table, study, events)


def _entries(context: TrialContext, policies: Mapping[str, Policy], samples: Mapping[str, Sequence[float]]) -> dict[str, Entry]:
    def words(policy: Policy) -> str:
        return latencies.describe(context.traced, place(context.traced, policy, context.execution), context.execution)

    return latencies.entries({key: (words(policies[key]), values) for key, values in samples.items()})


def _predicting(table: LatencyTable, study: Study, events: Events) -> LatencyTable:
    found = with_prediction(table, study.space, prepare(study.spec.trial).execution.integer_bits)
    assert found.rest is not None
    what = f"predicted from {found.rest.sample} that are measured, within {found.rest.worst:.1%} for 95 % of them"
    events.note(f"latency of other structures is {what}")
    return found


def measure_again(study: Study, graph: Graph, events: Events) -> None:
    """Measure the points that trained again once more, alone, and store it; points of one structure share its samples."""
    context = prepare(study.spec.trial)
    points = list(dict.fromkeys(point.policy for point in planned(study.records(), study.spec)))
    if study.remeasured().samples.keys() >= {policy.hash for policy in points}:
        return
    info = target_info(study.spec.trial.target)
    if not info.latency or info.model is not None:
        study.set_remeasured(Remeasured(samples={policy.hash: () for policy in points}))
        return
    keys = {policy: policy_key(context.traced, policy, context.execution) for policy in points}
    structures = {key: policy for policy, key in keys.items() if not policy.is_float}
    events.phase(f"measuring the latency of the repeated points again: {len(structures)} graph structures")
    exact = all_float(study.space.choices)
    float_samples, samples = _measure(study, graph, structures, exact, events, AGAIN_ROUNDS)
    found = {policy.hash: tuple(samples.get(key, float_samples)) for policy, key in keys.items()}
    study.set_remeasured(Remeasured(samples=found))


def _verb(spec: StudySpec) -> str:
    return "measuring" if target_info(spec.trial.target).model is None else "modelling"


def _measure(
    study: Study, graph: Graph, policies: Mapping[str, Policy], exact: Policy, events: Events, rounds: int = latencies.ROUNDS
) -> tuple[list[float], dict[str, list[float]]]:
    """Samples (ms) of the float network and of policies by the keys of their structures; the model's where there is one."""
    context, target = prepare(study.spec.trial), load_target(study.spec.trial.target)
    model = target_info(study.spec.trial.target).model
    if model is not None:
        predicted = functools.partial(
            milliseconds, context.traced, execution=context.execution, frame=study.spec.frame, model=model
        )
        return [predicted(policy=exact)], {key: [predicted(policy=policy)] for key, policy in policies.items()}
    return latencies.measure(
        {key: functools.partial(runtime_file, context, graph, policy) for key, policy in policies.items()},
        runtime_file(context, graph, exact),
        lambda data: target.load(data, study.spec.latency_threads),
        (context.traced.fitted(study.spec.frame[0]), context.traced.fitted(study.spec.frame[1])),
        rounds,
        lambda done, total: events.phase(f"measured {done} of {total} graph structures"),
    )
