"""Milliseconds a frame, measured once per structure of the exported graph, before any trial runs.

A table maps structures to latencies and is frozen before the first suggestion, so a repeated study sees
identical latencies. A structure says which layers and sums run on integers and where a tensor changes its
format; bit widths at or below 8, quantizers and clipping rules do not enter: they do not change the kernels. Nor does
how a layer that runs in float stores its weights: they are constants, unpacked when the file is compiled. Where
structures are too many to be measured, a sample is, and `latency_model.py` predicts the others.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from autoq.config.policy import ROLES, Policy, StageQuant
from autoq.config.space import SearchSpace
from autoq.costs.latency.predict import runs
from autoq.costs.latency.table import WARM_UP, Entry, LatencyTable, of_images
from autoq.graph.quantize import Execution, Placement, integer_layers, place
from autoq.graph.trace import Traced
from autoq.system.processor import available_cores
from autoq.targets import Runner

ROUNDS = 6
"""The fewest whose range is a 95 % interval of the median."""

GROUP = 16
"""Structures measured in turn within one round, with the float network among them; bounds the memory in use."""

MOST_COMBINATIONS = 10_000
"""Combinations of the stages' kinds that are looked through for different structures."""

MOST_STRUCTURES = 256
"""Structures that are all measured; of more only a sample is."""

SAMPLED_PER_STAGE = 3
"""Structures in a sample, for every stage."""

LEAST_SAMPLED = 64
"""Structures in a sample, at least."""

Kind = tuple[bool, ...]

File = TypeVar("File")
"""What `measure` is given: anything that can be loaded."""


def structure_key(traced: Traced, placements: list[Placement], execution: Execution) -> str:
    """12 hexadecimal digits that name the structure of the exported graph; a target's networks all give their output alike."""
    tensors = sorted(
        [placement.source, placement.quant.signed, placement.quant.granularity, sorted(site.name for site in placement.sites)]
        for placement in placements
        if placement.quant.bits <= execution.integer_bits and all(site.role not in ("weight", "output") for site in placement.sites)
    )
    layers = integer_layers(traced, placements, execution)
    return hashlib.sha256(json.dumps([tensors, layers]).encode()).hexdigest()[:12]


def policy_key(traced: Traced, policy: Policy, execution: Execution) -> str:
    """`structure_key` of a policy."""
    return structure_key(traced, place(traced, policy, execution), execution)


def describe(traced: Traced, placements: list[Placement], execution: Execution) -> str:
    """The structure in words, stage by stage: `int8`, `int8+skip`, `float`; `int` where integers may be wider than 8 bits."""
    on_target = "int8" if execution.integer_bits == 8 else "int"
    on_integers = set(integer_layers(traced, placements, execution))
    skips = {
        site.stage
        for placement in placements
        for site in placement.sites
        if site.role == "skip" and placement.quant.bits <= execution.integer_bits
    }
    stages: dict[str, bool] = {}
    for layer in traced.layers:
        stages[layer.stage] = stages.get(layer.stage, True) and layer.node in on_integers
    return ", ".join(
        f"{stage} {on_target if integer else 'float'}{'+skip' if stage in skips else ''}" for stage, integer in stages.items()
    )


class Structures(NamedTuple):
    """A representative policy of every structure, by key. complete: whether the space can produce no other."""

    policies: dict[str, Policy]
    complete: bool


def structures(traced: Traced, space: SearchSpace, execution: Execution, more: Iterable[Policy] = ()) -> Structures:
    """The structures of `more` and of a space: all of them, or a sample where they are too many to be measured."""
    more = list(more)

    def distinct(policies: Iterable[Policy]) -> dict[str, Policy]:
        found: dict[str, Policy] = {}
        for policy in itertools.chain(more, policies):
            found.setdefault(policy_key(traced, policy, execution), policy)
        return found

    kinds = _kinds(space, execution.integer_bits)
    if math.prod(len(quants) for quants in kinds.values()) <= MOST_COMBINATIONS:
        found = distinct(_representatives(kinds))
        if len(found) <= MOST_STRUCTURES + len(more):
            return Structures(found, complete=True)
    count = max(LEAST_SAMPLED, SAMPLED_PER_STAGE * len(kinds))
    return Structures(distinct(_sample(kinds, count, execution.integer_bits, of_images(space))), complete=False)


def kind(quant: StageQuant, integer_bits: int) -> Kind:
    """What of a stage's formats can change a structure: which roles run on integers, and whether activation and skip
    share one format.
    """
    return (*(quant.role(role).bits <= integer_bits for role in ROLES), quant.activation == quant.skip)


def by_kinds(traced: Traced, space: SearchSpace, execution: Execution, table: LatencyTable) -> dict[tuple[Kind, ...], float]:
    """Milliseconds of every combination of the stages' kinds."""
    policies = list(_representatives(_kinds(space, execution.integer_bits)))
    kinds = [tuple(kind(quant, execution.integer_bits) for _, quant in policy.stages) for policy in policies]
    return {of: table.ms(policy_key(traced, policy, execution), policy) for of, policy in zip(kinds, policies, strict=True)}


def _kinds(space: SearchSpace, integer_bits: int) -> dict[str, list[StageQuant]]:
    """stage -> one format for each of its kinds."""
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
    """Policies whose stages run on integers or in float at random; in every second one a run of neighbours is alike."""
    draw = random.Random(0)
    for number in range(count):
        shares = (draw.random(), draw.random())
        start, end = sorted(draw.choices(range(len(kinds) + 1), k=2)) if number % 2 else (0, 0)
        alike = draw.random() < 0.5
        chosen = []
        for position, (stage, quants) in enumerate(kinds.items()):
            wanted = (alike if start <= position < end else draw.random() < shares[0], draw.random() < shares[1])
            how = [runs(Policy(((stage, quant),)), integer_bits, images)[0] for quant in quants]
            agreement = [sum(a == b for a, b in zip(each, wanted, strict=True)) for each in how]
            best = [quant for quant, found in zip(quants, agreement, strict=True) if found == max(agreement)]
            chosen.append((stage, draw.choice(best)))
        yield Policy(tuple(chosen))


def measure(
    files: Mapping[str, Callable[[], File]],
    float_file: File,
    load: Callable[[File], Runner],
    frame: tuple[int, int],
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[float], dict[str, list[float]]]:
    """Samples, in milliseconds, of the float network and of every structure, alone on this machine.

    files: structure -> its file, built when its turn comes. frame: (width, height). Within a group all
    structures and the float network run in turn; a sample is the structure's time over the float
    network's in the same round, times the float network's median: a machine that speeds up or slows
    down between groups does not favour either.
    """
    image = np.random.default_rng(0).random((1, 3, frame[1], frame[0]), dtype=np.float32)
    reference = load(float_file)
    float_times: list[float] = []
    ratios: dict[str, list[float]] = {}
    keys = list(files)
    for start in range(0, max(1, len(keys)), GROUP):  # without a file, too, the float network is measured
        group = keys[start : start + GROUP]
        runners = {key: load(files[key]()) for key in group}
        for number in range(WARM_UP + rounds):
            base = _milliseconds(reference, image)
            times = {key: _milliseconds(run, image) for key, run in runners.items()}
            if number >= WARM_UP:
                float_times.append(base)
                for key, spent in times.items():
                    ratios.setdefault(key, []).append(spent / base)
        progress(min(start + GROUP, len(keys)), len(keys))
    typical = statistics.median(float_times)
    return float_times, {key: [ratio * typical for ratio in values] for key, values in ratios.items()}


def _milliseconds(run: Runner, image: np.ndarray) -> float:
    start = time.perf_counter()
    run(image)
    return (time.perf_counter() - start) * 1e3


def machine() -> str:
    """What the latencies belong to: processor name and core count."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {available_cores()} cores"


def entries(samples: Mapping[str, tuple[str, Sequence[float]]]) -> dict[str, Entry]:
    """Entries of a table. samples: structure -> (description, milliseconds)."""
    return {
        key: Entry(structure=words, ms=round(statistics.median(values), 3), samples=tuple(round(value, 3) for value in values))
        for key, (words, values) in samples.items()
    }
