"""The latency of every graph structure of a study, measured alone: before its trials, and of its front again after them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoq.config.events import Events
from autoq.config.policy import Policy, all_float
from autoq.config.space import SearchSpace
from autoq.config.space_file import parse_space
from autoq.config.spec import Remeasured, StudySpec
from autoq.costs.latency import measure as latencies
from autoq.costs.latency.analytic import milliseconds
from autoq.costs.latency.structure import Structures, structure_key, structure_of, structures
from autoq.costs.latency.table import Entry, LatencyTable, with_prediction
from autoq.errors import InputError
from autoq.export.onnx import Graph
from autoq.study.study import study_facts
from autoq.targets import load_target, target_info
from autoq.trial.context import TrialContext, runtime_file
from autoq.tuning.baselines import baselines

AGAIN_ROUNDS = 6
"""Samples of every structure of the repeated points when it is measured again."""


def _structures(context: TrialContext, spec: StudySpec, space: SearchSpace) -> Structures:
    """The structures that a study's baselines and space can produce, or a sample; the float network's comes first."""
    return structures(context.traced, space, context.execution, baselines(space.facts, spec.first_last_16).values())


def check_table(table: LatencyTable, spec: StudySpec, context: TrialContext) -> None:
    """Raise InputError if an earlier study's table does not fit this one."""
    table.check(spec.trial.model, spec.trial.scale, spec.trial.target, spec.frame, spec.latency_threads)
    if not target_info(spec.trial.target).latency:
        return
    space = parse_space(spec.space, study_facts(spec), "space")
    wanted = _structures(context, spec, space)
    missing = [key for key in wanted.policies if key not in table.entries]
    predicted = not wanted.complete and table.rest is not None and table.rest.integers.keys() == space.choices.keys()
    if missing and not predicted:
        what = f"lacks {len(missing)} structures of this network and space"
        raise InputError(f"latency table: {what}; measure again without --latency-table")


@dataclass(frozen=True)
class LatencyPass:
    """Measures latencies of a study, alone on the machine.

    Where the target models its latency, the model's values take the place of samples.

    Attributes:
        context: The context of the study's trials.
        spec: The study's definition.
        space: Its search space.
        graph: The marked float graph of `export_graph`.
        events: Listener for progress.
    """

    context: TrialContext
    spec: StudySpec
    space: SearchSpace
    graph: Graph
    events: Events

    def measure(self) -> LatencyTable:
        """The table of every structure the study can produce; empty where the target offers no latency."""
        trial = self.spec.trial
        table = LatencyTable(
            model=trial.model,
            scale=trial.scale,
            target=trial.target,
            runtime=load_target(trial.target).version(),
            frame=self.spec.frame,
            threads=self.spec.latency_threads,
            machine=latencies.machine(),
            entries={},
        )
        if not target_info(trial.target).latency:
            return table
        policies, complete = _structures(self.context, self.spec, self.space)
        self.events.phase(f"{self._verb} the latency of {len(policies)} graph structures")
        float_key, *keys = policies  # the float baseline comes first
        float_samples, samples = self._samples(policies[float_key], {key: policies[key] for key in keys})
        table = table.model_copy(update={"entries": self._entries(policies, {float_key: float_samples, **samples})})
        return table if complete else self._predicting(table)

    def add(self, table: LatencyTable, policies: Iterable[Policy]) -> LatencyTable:
        """The table with the structures of policies measured and its prediction fitted again; itself where none is missing."""
        wanted = {self._key(policy): policy for policy in policies}
        missing = {key: policy for key, policy in wanted.items() if key not in table.entries}
        if not missing or not table.entries:
            return table
        self.events.phase(f"{self._verb} the latency of {len(missing)} more graph structures")
        float_samples, samples = self._samples(self._float, missing)
        drift = table.entries[self._key(self._float)].ms / statistics.median(float_samples)
        samples = {key: [drift * value for value in values] for key, values in samples.items()}
        table = table.model_copy(update={"entries": {**table.entries, **self._entries(missing, samples)}})
        return self._predicting(table)

    def remeasure(self, points: Sequence[Policy]) -> Remeasured:
        """Measure points once more; points of one structure share its samples. Without samples where latency is not measured."""
        info = target_info(self.spec.trial.target)
        if not info.latency or info.model is not None:
            return Remeasured(samples={policy.hash: () for policy in points})
        keys = {policy: self._key(policy) for policy in points}
        distinct = {key: policy for policy, key in keys.items() if not policy.is_float}
        self.events.phase(f"measuring the latency of the repeated points again: {len(distinct)} graph structures")
        float_samples, samples = self._samples(self._float, distinct, AGAIN_ROUNDS)
        return Remeasured(samples={policy.hash: tuple(samples.get(key, float_samples)) for policy, key in keys.items()})

    @property
    def _float(self) -> Policy:
        return all_float(self.space.choices)

    @property
    def _verb(self) -> str:
        return "measuring" if target_info(self.spec.trial.target).model is None else "modelling"

    def _key(self, policy: Policy) -> str:
        return structure_key(self.context.plan_for(policy))

    def _entries(self, policies: Mapping[str, Policy], samples: Mapping[str, Sequence[float]]) -> dict[str, Entry]:
        return latencies.entries({key: (structure_of(self.context.plan_for(policies[key])), each) for key, each in samples.items()})

    def _predicting(self, table: LatencyTable) -> LatencyTable:
        found = with_prediction(table, self.space, self.context.execution.integer_bits)
        assert found.rest is not None
        what = f"predicted from {found.rest.sample} measured ones, within {found.rest.worst:.1%} for 95 % of them"
        self.events.note(f"the latency of other structures is {what}")
        return found

    def _samples(
        self, float_policy: Policy, policies: Mapping[str, Policy], rounds: int = latencies.ROUNDS
    ) -> tuple[list[float], dict[str, list[float]]]:
        """Samples (ms) of the float network `float_policy`, and of policies by the keys of their structures."""
        context, spec, graph = self.context, self.spec, self.graph
        if (model := target_info(spec.trial.target).model) is not None:
            modelled = {key: [milliseconds(context.plan_for(policy), spec.frame, model)] for key, policy in policies.items()}
            return [milliseconds(context.plan_for(float_policy), spec.frame, model)], modelled
        target = load_target(spec.trial.target)
        return latencies.measure(
            {key: functools.partial(runtime_file, context, graph, policy) for key, policy in policies.items()},
            runtime_file(context, graph, float_policy),
            lambda data: target.load(data, spec.latency_threads),
            (context.traced.fitted(spec.frame[0]), context.traced.fitted(spec.frame[1])),
            rounds,
            lambda done, total: self.events.phase(f"measured {done} of {total} graph structures"),
        )
