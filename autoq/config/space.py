"""Which policies are allowed: the choices of every stage and role, and what they are checked against."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from autoq.config.policy import FLOAT, Formats, Output, Policy, Role, StageQuant, TensorQuant

FIELDS = ("bits", "quantizer", "clipping", "granularity", "signed")


class Suggester(Protocol):
    """The part of an Optuna trial a space needs."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class QuantizerFacts(Protocol):
    """What a space must know of a quantizer: why it does not fit a tensor or a width, in words; empty if it does."""

    def unfit(self, role: str | None, signed: bool) -> str: ...

    def no_width(self, bits: int, role: str | None, integer_bits: int | None) -> str: ...


@dataclass(frozen=True)
class SpaceFacts:
    """Facts about the network and the target that a space is checked against.

    stages: the network's stages and their roles. formats: the target's number formats by role. integer_bits: the widest
    integers that it executes; above them quantizer and clipping have no effect. output: type of the network's output there.
    """

    model: str
    stages: Mapping[str, tuple[Role, ...]]
    quantizers: Mapping[str, QuantizerFacts]
    clippings: tuple[str, ...]
    formats: Mapping[Role, Formats]
    integer_bits: int
    target: str
    output: Output = "float"


@dataclass(frozen=True)
class Choices:
    """The allowed formats of one role of one stage. Bits are ascending."""

    bits: tuple[int, ...]
    quantizer: tuple[str, ...]
    clipping: tuple[str, ...]
    granularity: str
    signed: bool

    def quant(self, bits: int, quantizer: str, clipping: str) -> TensorQuant:
        return TensorQuant(bits, quantizer, clipping, self.granularity, self.signed)  # type: ignore[arg-type]

    def wide(self, bits: int) -> TensorQuant:
        """The format of a width that no quantizer produces: float, or stored wide and run in float."""
        return FLOAT if bits == FLOAT.bits else self.quant(bits, "minmax", "minmax")


@dataclass(frozen=True)
class SearchSpace:
    """Validated choices per stage and role. layers: stage -> patterns of module paths, if the file gives them."""

    facts: SpaceFacts
    choices: Mapping[str, Mapping[Role, Choices]]
    output: Output
    layers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def suggest(self, trial: Suggester) -> Policy:
        """Ask an Optuna trial for a policy. Bits are ordered integers (their rank), the rest are categories.

        Choices without effect are not asked: the quantizer of a width that runs in float, and the activation of a
        layer whose weight runs in float.
        """
        stages = []
        for stage, roles in self.choices.items():
            quants: dict[str, TensorQuant] = {}
            for role, choices in roles.items():
                if role == "activation" and quants["weight"].bits > self.facts.integer_bits:
                    continue
                quants[role] = self._suggest(trial, f"{stage}.{role}", choices)
            stages.append((stage, StageQuant(**quants)))
        return Policy(tuple(stages), self.output)

    def _suggest(self, trial: Suggester, name: str, choices: Choices) -> TensorQuant:
        rank = trial.suggest_int(f"{name}.bits", 0, len(choices.bits) - 1) if len(choices.bits) > 1 else 0
        bits = choices.bits[rank]
        if bits > self.facts.integer_bits:
            return choices.wide(bits)
        picked = {}
        for item in ("quantizer", "clipping"):
            options = getattr(choices, item)
            picked[item] = trial.suggest_categorical(f"{name}.{item}", options) if len(options) > 1 else options[0]
        return choices.quant(bits, **picked)

    def parameters(self, policy: Policy) -> dict[str, Any]:
        """The parameters that a sampler suggests for `policy`: the inverse of `suggest`."""
        replay = _Replay(self, policy)
        self.suggest(replay)
        return replay.parameters

    def size(self) -> int:
        """Number of distinct policies."""
        return math.prod(sum(1 for _ in self.stage_quants(stage)) for stage in self.choices)

    def enumerate(self) -> Iterator[Policy]:
        """Every distinct policy, in the order of the file."""
        stages = list(self.choices)
        for quants in itertools.product(*(self.stage_quants(stage) for stage in stages)):
            yield Policy(tuple(zip(stages, quants, strict=True)), self.output)

    def stage_quants(self, stage: str) -> Iterator[StageQuant]:
        """Every distinct format assignment of one stage."""
        roles = self.choices[stage]
        options = {role: list(self._quants(choices)) for role, choices in roles.items()}
        for weight in options.get("weight", [FLOAT]):
            in_float = weight.bits > self.facts.integer_bits
            for activation in [FLOAT] if in_float else options.get("activation", [FLOAT]):
                for skip in options.get("skip", [FLOAT]):
                    yield StageQuant(weight, activation, skip)

    def _quants(self, choices: Choices) -> Iterator[TensorQuant]:
        for bits in choices.bits:
            if bits > self.facts.integer_bits:
                yield choices.wide(bits)
            else:
                for quantizer, clipping in itertools.product(choices.quantizer, choices.clipping):
                    yield choices.quant(bits, quantizer, clipping)

    def to_dict(self) -> dict[str, Any]:
        """The whole space as YAML data, every default written out."""
        stages = {
            stage: {role: {field: _scalar_or_list(getattr(choices, field)) for field in FIELDS} for role, choices in roles.items()}
            for stage, roles in self.choices.items()
        }
        layers = {"layers": {stage: list(patterns) for stage, patterns in self.layers.items()}} if self.layers else {}
        return {"model": self.facts.model, **layers, "stages": stages, "output": self.output}


class _Replay:
    """Stands in for a trial: answers so that a known policy results, and keeps the answers."""

    def __init__(self, space: SearchSpace, policy: Policy) -> None:
        self.space, self.policy = space, policy
        self.parameters: dict[str, Any] = {}

    def _place(self, name: str) -> tuple[Choices, TensorQuant, str]:
        stage, role, field = name.rsplit(".", 2)
        choices = self.space.choices[stage][cast(Role, role)]
        return choices, self.policy.stage(stage).role(cast(Role, role)), field

    def suggest_int(self, name: str, low: int, high: int) -> int:
        choices, quant, _ = self._place(name)
        self.parameters[name] = choices.bits.index(quant.bits)
        return int(self.parameters[name])

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        _, quant, field = self._place(name)
        self.parameters[name] = getattr(quant, field)
        return self.parameters[name]


def _scalar_or_list(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 else list(value)
