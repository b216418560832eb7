"""Structures of exported graphs: which layers and sums run on integers, and where a tensor changes its format.

Latency depends on the structure alone. Bit widths of 8 and below, quantizers and range estimators do not enter, since they
do not change the kernels; nor does the stored width of the weights of a float layer, since they are constants, unpacked
when the file is compiled. Where there are too many structures to measure, a sample stands for them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from autoq.config.policy import ROLES, Policy, StageQuant
from autoq.config.space import SearchSpace
from autoq.config.structure import Structure
from autoq.costs.latency.predict import structure_by_widths
from autoq.costs.latency.table import LatencyTable, of_images
from autoq.graph.quantize import Execution, QuantizationPlan
from autoq.graph.trace import Traced

MOST_COMBINATIONS = 10_000
"""Combinations of the stages' kinds that are searched for different structures, at most."""

MOST_STRUCTURES = 256
"""Structures that are all measured; of more, only a sample is."""

SAMPLED_PER_STAGE = 3
"""Structures in a sample per stage."""

LEAST_SAMPLED = 64
"""Structures in a sample, at least."""

Kind = tuple[bool, ...]


def structure_key(plan: QuantizationPlan) -> str:
    """12 hexadecimal digits that name the structure of the exported graph.

    A target's networks all have one output format, so that does not enter.
    """
    tensors = sorted(
        [placement.source, placement.quant.signed, placement.quant.granularity, sorted(site.name for site in placement.sites)]
        for placement in plan.on_integers
        if all(site.role not in ("weight", "output") for site in placement.sites)
    )
    return hashlib.sha256(json.dumps([tensors, plan.integer_layers]).encode()).hexdigest()[:12]


def structure_of(plan: QuantizationPlan) -> Structure:
    """The structure of the exported graph, stage by stage."""
    layers, on_integers = plan.traced.layers, set(plan.integer_layers)
    stages = tuple(dict.fromkeys(layer.stage for layer in layers))
    in_float = {layer.stage for layer in layers if layer.node not in on_integers}
    skips = {site.stage for placement in plan.on_integers for site in placement.sites if site.role == "skip"}
    return Structure(
        stages=stages,
        integer=tuple(stage for stage in stages if stage not in in_float),
        skips=tuple(stage for stage in stages if stage in skips),
    )


class Structures(NamedTuple):
    """A representative policy of every structure, by key; `complete` where the space can produce no other."""

    policies: dict[str, Policy]
    complete: bool


def structures(traced: Traced, space: SearchSpace, execution: Execution, more: Iterable[Policy] = ()) -> Structures:
    """The structures of `more` and of a space: all of them, or a sample where there are too many to measure."""
    more = list(more)

    def distinct(policies: Iterable[Policy]) -> dict[str, Policy]:
        found: dict[str, Policy] = {}
        for policy in itertools.chain(more, policies):
            found.setdefault(structure_key(QuantizationPlan(traced, policy, execution)), policy)
        return found

    kinds = _kinds(space, execution.integer_bits)
    if math.prod(len(quants) for quants in kinds.values()) <= MOST_COMBINATIONS:
        found = distinct(_representatives(kinds))
        if len(found) <= MOST_STRUCTURES + len(more):
            return Structures(found, complete=True)
    count = max(LEAST_SAMPLED, SAMPLED_PER_STAGE * len(kinds))
    return Structures(distinct(_sample(kinds, count, execution.integer_bits, of_images(space))), complete=False)


def kind(quant: StageQuant, integer_bits: int) -> Kind:
    """The part of a stage's formats that can change a structure.

    That is which roles run on integers, and whether activation and skip share one format.
    """
    return (*(quant.role(role).bits <= integer_bits for role in ROLES), quant.activation == quant.skip)


def by_kinds(traced: Traced, space: SearchSpace, execution: Execution, table: LatencyTable) -> dict[tuple[Kind, ...], float]:
    """Milliseconds of every combination of the stages' kinds."""
    found = {}
    for policy in _representatives(_kinds(space, execution.integer_bits)):
        kinds = tuple(kind(quant, execution.integer_bits) for _, quant in policy.stages)
        found[kinds] = table.ms(structure_key(QuantizationPlan(traced, policy, execution)), policy)
    return found


def _kinds(space: SearchSpace, integer_bits: int) -> dict[str, list[StageQuant]]:
    """Stage -> one format for each of its kinds."""
    found = {}
    for stage in space.choices:
        kinds: dict[Kind, StageQuant] = {}
        for quant in space.stage_quants(stage):
            kinds.setdefault(kind(quant, integer_bits), quant)
        found[stage] = list(kinds.values())
    return found


def _representatives(kinds: Mapping[str, Sequence[StageQuant]]) -> Iterator[Policy]:
    """One policy for every combination of the stages' kinds."""
    for combination in itertools.product(*kinds.values()):
        yield Policy(tuple(zip(kinds, combination, strict=True)))


def _sample(kinds: Mapping[str, Sequence[StageQuant]], count: int, integer_bits: int, images: Sequence[str]) -> Iterator[Policy]:
    """Policies whose stages run on integers or in float at random; in every second one a series of neighbours is alike."""
    draw = random.Random(0)
    for number in range(count):
        shares = (draw.random(), draw.random())
        start, end = sorted(draw.choices(range(len(kinds) + 1), k=2)) if number % 2 else (0, 0)
        alike = draw.random() < 0.5
        chosen = []
        for position, (stage, quants) in enumerate(kinds.items()):
            wanted = (alike if start <= position < end else draw.random() < shares[0], draw.random() < shares[1])
            structures = [structure_by_widths(Policy(((stage, quant),)), integer_bits, images) for quant in quants]
            agreement = [(bool(each.integer) == wanted[0]) + (bool(each.skips) == wanted[1]) for each in structures]
            best = [quant for quant, found in zip(quants, agreement, strict=True) if found == max(agreement)]
            chosen.append((stage, draw.choice(best)))
        yield Policy(tuple(chosen))
