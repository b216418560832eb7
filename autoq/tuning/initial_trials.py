"""The initial trials of a search: the front that stages quantized one at a time predict for the whole space."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autoq.config.constraints import Constraint
from autoq.config.objectives import FIDELITY_FLOOR, OBJECTIVES
from autoq.config.policy import Policy, Role, TensorQuant, all_float
from autoq.config.space import SearchSpace
from autoq.config.spec import Probe, Sensitivity
from autoq.costs.latency.structure import by_kinds, kind, structure_key
from autoq.costs.latency.table import LatencyTable
from autoq.costs.operations import costs
from autoq.costs.size import packed_bytes
from autoq.export.nibbles import NIBBLE
from autoq.export.onnx import Graph
from autoq.networks import model_info
from autoq.networks.stages import assign
from autoq.quantizers import QUANTIZERS
from autoq.study import pareto
from autoq.trial.context import TrialContext
from autoq.tuning import additive
from autoq.tuning.additive import Predicted
from autoq.tuning.sensitivity import alone, measure

PROBED_IMAGES = 4
"""Evaluation images for the sensitivity of the stages, spread over all of them."""

ADDITIVE = ("size", "size_runtime", "ops", "bops", "peak_memory")
"""Costs that add up over stages, peak_memory roughly."""


def probe(context: TrialContext, graph: Graph, space: SearchSpace, phase: Callable[[str], None] | None = None) -> tuple[Probe, ...]:
    """Quantize every stage alone in each of its `additive.probes`, in their order, without training, on PROBED_IMAGES images."""
    stages = list(space.choices)
    wanted = [alone(stages, stage, quant) for stage in stages for quant in additive.probes(space, stage)]
    context = dataclasses.replace(context, pairs=context.pairs[:: math.ceil(len(context.pairs) / PROBED_IMAGES)])
    return tuple(measure(context, graph, wanted, (), phase=phase))


class Costs(NamedTuple):
    """Names of costs that add up over stages, and a function that gives their values for a policy."""

    names: tuple[str, ...]
    of: Callable[[Policy], list[float]]


def propose_initial_trials(
    context: TrialContext,
    space: SearchSpace,
    objectives: Sequence[str],
    table: LatencyTable,
    count: int,
    probes: Sequence[Probe],
    constraints: Sequence[Constraint] = (),
    warm_start: Sequence[Policy] = (),
) -> Sensitivity:
    """Propose the policies that are predicted to be the front, the most valuable first.

    Costs that add up over stages are exact; latency is the table's. Whatever the quality objective is, the error of the
    output stands for it. Policies that violate a constraint on these costs are left out.

    Args:
        context: The context of the trials.
        space: The search space.
        objectives: Names of the objectives.
        table: The study's latencies.
        count: Number of initial trials.
        probes: The results of `probe`.
        constraints: Constraints of the study.
        warm_start: Policies of another study; the nearest ones of this space become up to half of the initial trials.
    """
    stages = list(space.choices)
    losses = iter(probes)
    measured = {stage: {quant: next(losses).loss for quant in additive.probes(space, stage)} for stage in stages}
    adding = _adding(context, objectives, table)
    integer_bits = context.execution.integer_bits
    options = additive.options(space, measured, adding.of, lambda quant: kind(quant, integer_bits))
    names, float_policy = list(adding.names), all_float(stages)
    reference = adding.of(float_policy)
    if "latency" in objectives and "latency" not in names and additive.can_enumerate(options):
        milliseconds = by_kinds(context.traced, space, context.execution, table)
        front = additive.predicted_front(options, milliseconds.__getitem__)
        names.append("latency")
        reference.append(_latency(context, table, float_policy))
    else:
        front = additive.predicted_front(options)
        if "latency" in names:
            front = _with_latency(context, table, front, names.index("latency"))
            reference[names.index("latency")] = _latency(context, table, float_policy)
    front = [dataclasses.replace(each, policy=dataclasses.replace(each.policy, output=space.output)) for each in front]
    bounds = [each for each in constraints if each.exact and each.name in names]
    front = [each for each in front if all(bound.violation(dict(zip(names, each.costs, strict=True)), {}) <= 0 for bound in bounds)]
    known = _like(context, space, warm_start)[: count // 2]
    best = additive.by_worth(front, _quality(context, objectives), [1.01 * cost for cost in reference], count)
    chosen = [each.policy for each in best if each.policy not in known]
    initial = [*known, *chosen][:count]
    return Sensitivity(
        probes=tuple(probes),
        initial_trials=tuple(policy.to_dict() for policy in initial),
        predicted=tuple(additive.policy_loss(space, measured, policy) for policy in initial),
    )


def _adding(context: TrialContext, objectives: Sequence[str], table: LatencyTable) -> Costs:
    """The objectives that add up over stages, else size; also the additive part of a latency that the table predicts."""
    predicts = table.rest
    adding = ADDITIVE if predicts is None else (*ADDITIVE, "latency")
    names = tuple(name for name in objectives if name in adding) or ("size",)

    def of(policy: Policy) -> list[float]:
        plan = context.plan_for(policy)
        every = {"size": float(packed_bytes(plan))}
        if "size_runtime" in names:
            every["size_runtime"] = float(packed_bytes(context.plan_for(_as_loaded(policy))))
        if not {"size", "size_runtime", "latency"}.issuperset(names):
            found = costs(plan, table.frame)
            every |= {"ops": found.ops, "bops": float(found.bops), "peak_memory": float(found.peak_memory)}
        if predicts is not None:
            every["latency"] = predicts.apart(policy)
        return [every[name] for name in names]

    return Costs(names, of)


def _as_loaded(policy: Policy) -> Policy:
    """The widths of a runtime file: 4 bits for weights whose integers fit, otherwise at least 8."""

    def widened(role: Role, quant: TensorQuant) -> TensorQuant:
        symmetric = role == "weight" and quant.signed
        nibbles = symmetric and QUANTIZERS[quant.quantizer].weight_integers(quant.bits) <= NIBBLE.bits
        return dataclasses.replace(quant, bits=NIBBLE.bits if nibbles else max(8, quant.bits))

    return policy.mapped(widened)


def _latency(context: TrialContext, table: LatencyTable, policy: Policy) -> float:
    return table.ms(structure_key(context.plan_for(policy)), policy)


def _with_latency(context: TrialContext, table: LatencyTable, front: Sequence[Predicted], position: int) -> list[Predicted]:
    """The predicted front by the whole latency, where it was found by the additive part."""
    found = []
    for each in front:
        known = list(each.costs)
        known[position] = _latency(context, table, each.policy)
        found.append(dataclasses.replace(each, costs=tuple(known)))
    values = [[each.loss, *each.costs] for each in found]
    return [found[index] for index in pareto.front(values, ["minimize"] * len(values[0]))] if values else []


def _like(context: TrialContext, space: SearchSpace, warm_start: Sequence[Policy]) -> list[Policy]:
    """The policies of the space nearest to others.

    A stage that another policy lacks takes the format of the network's own stage that it belongs to (`--by block`,
    `--by layer`).
    """
    patterns = model_info(context.spec.model).patterns
    own = assign([layer.path for layer in context.traced.layers], patterns) if patterns else {}
    wholes = {layer.stage: own[layer.path] for layer in context.traced.layers if layer.path in own}

    def in_parts(policy: Policy) -> Policy:
        stages = dict(policy.stages)
        parts = {stage: stages[wholes[stage]] for stage in space.choices if stage not in stages and wholes.get(stage) in stages}
        return Policy((*policy.stages, *parts.items()))

    return list(dict.fromkeys(additive.nearest(space, in_parts(policy)) for policy in warm_start))


def _quality(context: TrialContext, objectives: Sequence[str]) -> additive.Quality:
    """The quality to predict: PSNR where an objective compares with originals, else fidelity."""
    if not any(OBJECTIVES[name].original for name in objectives):
        return additive.lost_fidelity(FIDELITY_FLOOR)
    both = [(output, pair.high) for output, pair in zip(context.float_outputs, context.pairs, strict=True) if pair.high is not None]
    return additive.lost_psnr(float(np.mean([np.mean((output.astype(float) - high) ** 2) / 255**2 for output, high in both])))
