"""What a policy will lose, predicted from stages quantized one at a time, and the policies worth trying first.

The error a quantized stage adds to the output is taken to be independent of the others' errors, so mean squared errors
add up: over stages, and within a stage over its roles. Bytes and operations add up over stages.
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
"""Policies that are enumerated; where stages combine to more, an integer program finds the front."""

BUDGETS = 6
"""Of every cost, between its least and its most, for which an integer program finds the policy of least loss."""

TIE = 1e-5
"""What costs weigh beside the loss in an integer program: of policies with equal loss it takes the cheapest."""

BROUGHT_BACK = 0.5
"""Of the dB that quantizing costs, what a short training brings back: two thirds on XLSR, up to nine tenths on SRGAN."""

GAINED = 4.0
"""dB of fidelity that a short training adds: 3 to 5 on SRGAN (benchmarks/tables/fidelity-srgan-x4.csv)."""

QUALITY_SLACK = 3.0
"""dB below the float network from which on a policy is worth nothing, as in a study's hypervolume."""

LEARNED = "lsq"
"""The quantizer of policies that no training has judged yet, where the space has it: training only adds to what it does."""


# ------------------------------------------------------------ one at a time


def anchor(space: SearchSpace, stage: str) -> StageQuant:
    """A stage with every role as wide as integers go; where the space has no integers for a role, its narrowest."""
    bits = {
        role: max((width for width in choices.bits if width <= space.facts.integer_bits), default=min(choices.bits))
        for role, choices in space.choices[stage].items()
    }
    return _stage_quant(space, stage, {role: plain(space, stage, role, width) for role, width in bits.items()})


def probes(space: SearchSpace, stage: str) -> list[StageQuant]:
    """The anchor of a stage, then what differs from it in one role: every bit width with every clipping rule.

    Quantizers are not told apart: without training they differ little, and with it in ways that this does not show.
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
    """The loss a stage adds in any format: its anchor's, and what each role adds to that. measured: of `probes`."""
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
    """The loss of a policy: those its stages add, summed."""
    return sum(stage_loss(space, stage, measured[stage], quant) for stage, quant in policy.stages)


def nearest(space: SearchSpace, policy: Policy) -> Policy:
    """The policy of a space that is most like one of another network or scale, stage by stage and role by role.

    A stage that the other has not, by name, is as wide as integers go.
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
    quantizer = quant.quantizer if quant.quantizer in choices.quantizer else standing(choices)
    return choices.quant(bits, quantizer, quant.clipping if quant.clipping in choices.clipping else choices.clipping[0])


def _like(space: SearchSpace, stage: str, role: Role, quant: TensorQuant) -> TensorQuant:
    """A format in the quantizer that stands for all."""
    return plain(space, stage, role, quant.bits, quant.clipping)


def _roles(quant: StageQuant, space: SearchSpace, stage: str) -> dict[Role, TensorQuant]:
    return {role: quant.role(role) for role in space.choices[stage]}


def plain(space: SearchSpace, stage: str, role: Role, bits: int, clipping: str | None = None) -> TensorQuant:
    """A role's format in the quantizer that stands for all."""
    choices = space.choices[stage][role]
    if bits > space.facts.integer_bits:
        return choices.wide(bits)
    return choices.quant(bits, standing(choices), clipping or choices.clipping[0])


def standing(choices: Choices) -> str:
    """The quantizer that stands for all of a role's."""
    return LEARNED if LEARNED in choices.quantizer else choices.quantizer[0]


def _stage_quant(space: SearchSpace, stage: str, roles: Mapping[Role, TensorQuant]) -> StageQuant:
    """Roles put together; the activation of a layer whose weight runs in float is float."""
    found = StageQuant(**{str(role): quant for role, quant in roles.items()})
    return replace(found, activation=FLOAT) if found.weight.bits > space.facts.integer_bits else found


# ------------------------------------------------------------ the predicted front


@dataclass(frozen=True)
class Option:
    """A format of a stage: the loss and the costs it adds, and what costs that do not add up know it by."""

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
    """Every format of every stage, in the quantizers that stand for all.

    measured: stage -> loss of its `probes`. costs: of a whole policy, what adds up over stages (bytes, operations).
    """
    base = {stage: anchor(space, stage) for stage in space.choices}
    whole = np.array(costs(_policy(base, space.output)))
    found: dict[str, list[Option]] = {}
    for stage, choices in space.choices.items():
        found[stage] = []
        for quant in space.stage_quants(stage):
            narrow = [role for role in choices if quant.role(role).bits <= space.facts.integer_bits]
            if all(quant.role(role).quantizer == standing(choices[role]) for role in narrow):
                added = np.array(costs(_policy({**base, stage: quant}, space.output))) - whole + whole / len(base)
                loss = stage_loss(space, stage, measured[stage], quant)
                found[stage].append(Option(quant, loss, tuple(added.tolist()), kind(quant)))
    return found


def _policy(stages: Mapping[str, StageQuant], output: Output = "float") -> Policy:
    return Policy(tuple(stages.items()), output)


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """Those that no other of their kind beats: a policy on the front is made of nothing else."""
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
    """The policies that no other is predicted to beat in loss and every cost, by loss.

    stages: the options of each. joint: a further cost (latency), of the kinds of all stages together; where stages combine
    to more than can be enumerated there is none, and costs must add up.
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
    """Whether the worthwhile options of all stages combine to few enough policies."""
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
    """For a grid of budgets of all costs, the policy of least loss within them: integer programs, solved by HiGHS."""
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
    """scipy's milp. HiGHS writes some lines to the process's standard output, whatever it is told; there only results belong."""
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
    """What an error of the output (mean squared, 1 is full scale) is worth after a short training, in dB to be minimized.

    corner: from which on a policy is worth nothing.
    """

    of: Callable[[float], float]
    corner: float


def lost_psnr(float_mse: float) -> Quality:
    """PSNR to the originals, from which the float network is `float_mse` away: the dB lost."""
    return Quality(lambda loss: 10 * math.log10(1 + loss / float_mse) * (1 - BROUGHT_BACK), QUALITY_SLACK)


def lost_fidelity(floor: float) -> Quality:
    """PSNR to the float network's output, worth something above `floor` dB."""
    return Quality(lambda loss: 10 * math.log10(max(loss, 1e-10)) - GAINED, -floor)


def by_worth(front: Sequence[Predicted], quality: Quality, reference: Sequence[float], count: int) -> list[Predicted]:
    """`count` policies of a predicted front, each the one that adds most to the volume the earlier ones dominate.

    reference: the costs from which on a policy is worth nothing.
    """
    values = np.array([[quality.of(each.loss), *each.costs] for each in front])
    corner = [quality.corner, *reference]
    left, chosen = list(range(len(front))), list[int]()
    while left and len(chosen) < count:
        volumes = [pareto.hypervolume(values[[*chosen, index]], _minimized(values), corner) for index in left]
        chosen.append(left.pop(int(np.argmax(volumes))))
    return [front[index] for index in chosen]


def _minimized(values: Matrix) -> list[Direction]:
    return ["minimize"] * values.shape[1]
