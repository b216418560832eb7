"""The additive model: the loss of a policy, predicted from stages quantized one at a time, and the front it predicts.

The error that a quantized stage adds to the output is assumed to be independent of the others' errors, so mean squared
errors add up over stages, and within a stage over its roles. Bytes and operations add up over stages.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from autoq.config.objectives import Direction
from autoq.config.policy import FLOAT, ROLES, Output, Policy, Role, StageQuant, TensorQuant
from autoq.config.space import Choices, SearchSpace
from autoq.study import pareto

Matrix = NDArray[np.float64]

MAX_COMBINATIONS = 100_000
"""Policies that are enumerated, at most; for more combinations an integer program finds the front."""

BUDGETS = 6
"""Budgets per cost, between its least and its most, for which an integer program finds the policy of least loss."""

TIE = 1e-5
"""Weight of costs beside the loss in an integer program: of policies with equal loss it takes the cheapest."""

BROUGHT_BACK = 0.5
"""Share of the dB lost to quantization that a short training recovers: two thirds on XLSR, up to nine tenths on SRGAN."""

GAINED = 4.0
"""dB of fidelity that a short training adds: 3 to 5 on SRGAN (benchmarks/tables/fidelity-srgan-x4.csv)."""

QUALITY_SLACK = 3.0
"""dB below the float network from which on a policy has no worth, as in the hypervolume."""

LEARNED = "lsq"
"""The representative quantizer where the space has it: its quality only improves with training."""


# ------------------------------------------------------------ one at a time


def anchor(space: SearchSpace, stage: str) -> StageQuant:
    """A stage with every role at its widest integer; where the space has no integers for a role, at its narrowest width."""
    bits = {
        role: max((width for width in choices.bits if width <= space.facts.integer_bits), default=min(choices.bits))
        for role, choices in space.choices[stage].items()
    }
    return _stage_quant(space, stage, {role: plain(space, stage, role, width) for role, width in bits.items()})


def probes(space: SearchSpace, stage: str) -> list[StageQuant]:
    """The anchor of a stage, then formats that differ from it in one role: every bit width with every range estimator.

    Quantizers are not distinguished: without training they differ little, and with training in ways that probes do not show.
    """
    wide = anchor(space, stage)
    found = {wide: None}
    for role, choices in space.choices[stage].items():
        for bits in choices.bits:
            for clipping in choices.clipping if bits <= space.facts.integer_bits else choices.clipping[:1]:
                quant = plain(space, stage, role, bits, clipping)
                found[_stage_quant(space, stage, {**_roles(wide, space, stage), role: quant})] = None
    return list(found)


def stage_loss(space: SearchSpace, stage: str, measured: Mapping[StageQuant, float], quant: StageQuant) -> float:
    """The loss that a stage adds in any format: its anchor's, and that of each role. `measured`: the losses of `probes`."""
    wide = anchor(space, stage)
    roles = _roles(wide, space, stage)
    in_float = quant.weight.bits > space.facts.integer_bits
    if in_float and "weight" in roles:
        total = measured[_stage_quant(space, stage, {**roles, "weight": _like(space, stage, "weight", quant.weight)})]
    else:
        total = measured[wide]
    for role in ("skip",) if in_float else ROLES:
        if role in roles:
            changed = {**roles, role: _like(space, stage, role, quant.role(role))}
            total += measured[_stage_quant(space, stage, changed)] - measured[wide]
    return max(total, 0.0)


def policy_loss(space: SearchSpace, measured: Mapping[str, Mapping[StageQuant, float]], policy: Policy) -> float:
    """The loss of a policy: the sum over its stages."""
    return sum(stage_loss(space, stage, measured[stage], quant) for stage, quant in policy.stages)


def nearest(space: SearchSpace, policy: Policy) -> Policy:
    """The policy of a space nearest to one of another network or scale, stage by stage and role by role.

    A stage that the other lacks, by name, is at its anchor.
    """
    others = dict(policy.stages)
    stages = {}
    for stage, roles in space.choices.items():
        known = _roles(others.get(stage) or anchor(space, stage), space, stage)
        stages[stage] = _stage_quant(space, stage, {role: _most_like(space, roles[role], quant) for role, quant in known.items()})
    return Policy(tuple(stages.items()), space.output)


def _most_like(space: SearchSpace, choices: Choices, quant: TensorQuant) -> TensorQuant:
    bits = min(choices.bits, key=lambda width: (abs(width - quant.bits), width))
    if bits > space.facts.integer_bits:
        return choices.wide(bits)
    quantizer = quant.quantizer if quant.quantizer in choices.quantizer else representative(choices)
    return choices.quant(bits, quantizer, quant.clipping if quant.clipping in choices.clipping else choices.clipping[0])


def _like(space: SearchSpace, stage: str, role: Role, quant: TensorQuant) -> TensorQuant:
    """A format in the representative quantizer."""
    return plain(space, stage, role, quant.bits, quant.clipping)


def _roles(quant: StageQuant, space: SearchSpace, stage: str) -> dict[Role, TensorQuant]:
    return {role: quant.role(role) for role in space.choices[stage]}


def plain(space: SearchSpace, stage: str, role: Role, bits: int, clipping: str | None = None) -> TensorQuant:
    """A role's format in the representative quantizer."""
    choices = space.choices[stage][role]
    if bits > space.facts.integer_bits:
        return choices.wide(bits)
    return choices.quant(bits, representative(choices), clipping or choices.clipping[0])


def representative(choices: Choices) -> str:
    """The representative of a role's quantizers."""
    return LEARNED if LEARNED in choices.quantizer else choices.quantizer[0]


def _stage_quant(space: SearchSpace, stage: str, roles: Mapping[Role, TensorQuant]) -> StageQuant:
    """A stage's format from those of its roles; where the weight runs in float, the activation is float."""
    found = StageQuant(**{str(role): quant for role, quant in roles.items()})
    return replace(found, activation=FLOAT) if found.weight.bits > space.facts.integer_bits else found


# ------------------------------------------------------------ the predicted front


@dataclass(frozen=True)
class Option:
    """A format of a stage, with its loss, its costs, and its kind for costs that do not add up (latency)."""

    quant: StageQuant
    loss: float
    costs: tuple[float, ...]
    kind: tuple[bool, ...] = ()


def options(
    space: SearchSpace,
    measured: Mapping[str, Mapping[StageQuant, float]],
    costs: Callable[[Policy], Sequence[float]],
    kind: Callable[[StageQuant], tuple[bool, ...]] = lambda quant: (),
) -> dict[str, list[Option]]:
    """Every format of every stage, in the representative quantizers.

    Args:
        space: The search space.
        measured: Stage -> losses of its `probes`.
        costs: Function from a policy to its costs that add up over stages (bytes, operations).
        kind: Function from a stage's format to its kind.
    """
    base = {stage: anchor(space, stage) for stage in space.choices}
    whole = np.array(costs(_policy(base, space.output)))
    found: dict[str, list[Option]] = {}
    for stage, choices in space.choices.items():
        found[stage] = []
        for quant in space.stage_quants(stage):
            narrow = [role for role in choices if quant.role(role).bits <= space.facts.integer_bits]
            if all(quant.role(role).quantizer == representative(choices[role]) for role in narrow):
                added = np.array(costs(_policy({**base, stage: quant}, space.output))) - whole + whole / len(base)
                loss = stage_loss(space, stage, measured[stage], quant)
                found[stage].append(Option(quant, loss, tuple(added.tolist()), kind(quant)))
    return found


def _policy(stages: Mapping[str, StageQuant], output: Output = "float") -> Policy:
    return Policy(tuple(stages.items()), output)


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """The options that no other of their kind dominates; policies on the front consist of these alone."""
    kept = []
    for kind in dict.fromkeys(option.kind for option in options):
        alike = [option for option in options if option.kind == kind]
        values = np.array([[option.loss, *option.costs] for option in alike])
        kept += [alike[index] for index in sorted(pareto.front(values, _minimized(values)))]
    return kept


@dataclass(frozen=True)
class Predicted:
    """A policy with its predicted loss (mean squared error) and costs."""

    policy: Policy
    loss: float
    costs: tuple[float, ...]


def predicted_front(
    stages: Mapping[str, Sequence[Option]], joint: Callable[[tuple[tuple[bool, ...], ...]], float] | None = None
) -> list[Predicted]:
    """The predicted front of loss and all costs, by loss.

    Args:
        stages: The options of each stage.
        joint: A further cost (latency) from the kinds of all stages together. It needs combinations that can be enumerated.
    """
    kept = {stage: worthwhile(options) for stage, options in stages.items()}
    if math.prod(len(options) for options in kept.values()) <= MAX_COMBINATIONS:
        found = list(_combinations(kept, joint))
    elif joint is None:
        found = list(_by_budget(kept))
    else:
        raise ValueError("too many combinations for a cost that does not add up")
    values = np.array([[each.loss, *each.costs] for each in found])
    return [found[index] for index in pareto.front(values, _minimized(values))]


def can_enumerate(stages: Mapping[str, Sequence[Option]]) -> bool:
    """Whether the worthwhile options of all stages combine to at most MAX_COMBINATIONS policies."""
    return math.prod(len(worthwhile(options)) for options in stages.values()) <= MAX_COMBINATIONS


def _combinations(
    stages: Mapping[str, Sequence[Option]], joint: Callable[[tuple[tuple[bool, ...], ...]], float] | None
) -> Iterator[Predicted]:
    for chosen in itertools.product(*stages.values()):
        further = () if joint is None else (joint(tuple(option.kind for option in chosen)),)
        yield _together(stages, chosen, further)


def _together(stages: Mapping[str, Sequence[Option]], chosen: Sequence[Option], further: tuple[float, ...] = ()) -> Predicted:
    costs = tuple(sum(each) for each in zip(*(option.costs for option in chosen), strict=True))
    policy = _policy({stage: option.quant for stage, option in zip(stages, chosen, strict=True)})
    return Predicted(policy, sum(option.loss for option in chosen), (*costs, *further))


def _by_budget(stages: Mapping[str, Sequence[Option]]) -> Iterator[Predicted]:
    """The policy of least loss within each of a grid of budgets of all costs: integer programs, solved by HiGHS."""
    flat = [option for options in stages.values() for option in options]
    loss = np.array([option.loss for option in flat])
    costs = np.array([option.costs for option in flat])
    starts = np.cumsum([0, *(len(options) for options in stages.values())])
    slices = [slice(start, end) for start, end in itertools.pairwise(starts)]
    one_each = np.zeros((len(stages), len(flat)))
    for row, part in zip(one_each, slices, strict=True):
        row[part] = 1
    least = sum(costs[part].min(0) for part in slices)
    most = sum(costs[part].max(0) for part in slices)
    for shares in itertools.product(np.linspace(0, 1, BUDGETS), repeat=costs.shape[1]):
        budget = least + np.array(shares) * (most - least)
        solution = _solve(
            1 / TIE * loss / loss.max() + (costs / most).sum(1),  # large numbers: HiGHS stops within 1e-6 of the best
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs.T / most[:, None], -np.inf, budget / most)],
        )
        if solution.x is not None:
            picked = np.flatnonzero(solution.x > 0.5)
            yield _together(stages, [flat[index] for index in picked])


def _solve(*problem: Any, **settings: Any) -> Any:
    """scipy's milp, with the process's standard output on standard error.

    HiGHS prints a debugging line (`transformNewIntegerFeasibleSolution`) past every option and past Python; scaled or rounded
    rows do not avoid it, and highspy 1.16 prints a banner instead. Only results belong on standard output.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        return milp(*problem, **settings)
    finally:
        ctypes.CDLL(None).fflush(None)  # the C library's own buffer
        os.dup2(kept, 1)
        os.close(kept)


class Quality(NamedTuple):
    """Predicts the quality of a policy after a short training.

    Attributes:
        of: Function from the mean squared error of the output (1 is full scale) to dB to be minimized.
        corner: The dB from which on a policy has no worth.
    """

    of: Callable[[float], float]
    corner: float


def lost_psnr(float_mse: float) -> Quality:
    """The dB of PSNR lost; `float_mse` is the float network's error against the originals."""
    return Quality(lambda loss: 10 * math.log10(1 + loss / float_mse) * (1 - BROUGHT_BACK), QUALITY_SLACK)


def lost_fidelity(floor: float) -> Quality:
    """Fidelity, which has worth above `floor` dB."""
    return Quality(lambda loss: 10 * math.log10(max(loss, 1e-10)) - GAINED, -floor)


def by_worth(front: Sequence[Predicted], quality: Quality, reference: Sequence[float], count: int) -> list[Predicted]:
    """Policies of a predicted front in the order of their worth: each adds most to the volume that the earlier ones dominate.

    Args:
        front: The predicted front.
        quality: The worth of a loss.
        reference: Costs from which on a policy is worth nothing.
        count: Policies to choose.
    """
    values = np.array([[quality.of(each.loss), *each.costs] for each in front])
    if not len(values):
        return []
    chosen = pareto.most_volume(values, _minimized(values), [quality.corner, *reference], count)
    return [front[index] for index in chosen]


def _minimized(values: Matrix) -> list[Direction]:
    return ["minimize"] * values.shape[1]
