"""A policy: a frozen assignment stage -> role -> number format.

A policy is data. Everything else (the fake-quantized network, its size, its latency, its file) is a
function of it, so equal policies give equal results and can be cached, compared and shipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from autoq.errors import PolicyError, suggest

Role = Literal["weight", "activation", "skip"]
Granularity = Literal["tensor", "channel"]
Output = Literal["float", "uint8"]
"""Type of the network's output: float32, or 8-bit pixels clipped to [0, 1]."""

ROLES: tuple[Role, ...] = ("weight", "activation", "skip")
FLOAT_BITS = 32


@dataclass(frozen=True)
class TensorQuant:
    """The number format of one role.

    bits: 1..16 for integers (a target may execute wide ones in float), 32 for float32.
    signed: True is symmetric around zero with zero point 0, False is affine in [0, 2^bits - 1].
    """

    bits: int
    quantizer: str = "minmax"
    clipping: str = "minmax"
    granularity: Granularity = "tensor"
    signed: bool = False

    def __post_init__(self) -> None:
        if self.bits != FLOAT_BITS and not 1 <= self.bits <= 16:
            raise PolicyError(f"bits {self.bits}: expected 1 to 16, or 32 for float")

    @property
    def is_float(self) -> bool:
        return self.bits == FLOAT_BITS


FLOAT = TensorQuant(bits=FLOAT_BITS)


def weight_quant(bits: int, quantizer: str = "minmax", clipping: str = "minmax") -> TensorQuant:
    """The usual weight format: symmetric, one scale per output channel."""
    return TensorQuant(bits, quantizer, clipping, "channel", signed=True) if bits != FLOAT_BITS else FLOAT


@dataclass(frozen=True)
class Formats:
    """Number formats that a target has for a role. The first granularity and signedness are the defaults."""

    bits: tuple[int, ...]
    granularity: tuple[Granularity, ...]
    signed: tuple[bool, ...]


EVERY_WIDTH = (*range(1, 17), FLOAT_BITS)

INTEGER_RUNTIME: dict[Role, Formats] = {
    "weight": Formats(EVERY_WIDTH, ("channel", "tensor"), (True,)),
    "activation": Formats(EVERY_WIDTH, ("tensor",), (False, True)),
    "skip": Formats(EVERY_WIDTH, ("tensor",), (False, True)),
}
"""Weights without a zero point, one scale per activation or skip, freely mixed with float."""


@dataclass(frozen=True)
class StageQuant:
    """The formats of one stage's roles. A role that the stage lacks stays FLOAT."""

    weight: TensorQuant = FLOAT
    activation: TensorQuant = FLOAT
    skip: TensorQuant = FLOAT

    def role(self, name: Role) -> TensorQuant:
        quant: TensorQuant = getattr(self, name)
        return quant

    @property
    def label(self) -> str:
        """`w/a/s`, as FQSR writes it; trailing float roles are left out: `8/8`, `16`."""
        bits = [str(self.role(role).bits) for role in ROLES]
        while len(bits) > 1 and bits[-1] == str(FLOAT_BITS):
            bits.pop()
        return "/".join(bits)


@dataclass(frozen=True)
class Policy:
    """stage -> StageQuant, and whether the network's output stays float or is clipped to uint8."""

    stages: tuple[tuple[str, StageQuant], ...]
    output: Output = "float"

    def stage(self, name: str) -> StageQuant:
        for stage, quant in self.stages:
            if stage == name:
                return quant
        raise PolicyError(f"policy has no stage '{name}' (it has: {', '.join(s for s, _ in self.stages)})")

    def mapped(self, change: Callable[[Role, TensorQuant], TensorQuant]) -> Policy:
        """The policy with the formats that `change` gives for every role of every stage that is not float."""

        def changed(role: Role, quant: TensorQuant) -> TensorQuant:
            return quant if quant.is_float else change(role, quant)

        stages = ((stage, StageQuant(*(changed(role, quant.role(role)) for role in ROLES))) for stage, quant in self.stages)
        return replace(self, stages=tuple(stages))

    @property
    def is_float(self) -> bool:
        return all(quant.role(role).is_float for _, quant in self.stages for role in ROLES)

    @property
    def label(self) -> str:
        """Bits only, stage by stage: `8 4/8/8 8/8 8/8`."""
        return " ".join(quant.label for _, quant in self.stages)

    @cached_property
    def hash(self) -> str:
        """12 hexadecimal digits, the same on every machine and in every run."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; float roles are left out."""
        stages = {
            stage: {role: asdict(quant.role(role)) for role in ROLES if not quant.role(role).is_float}
            for stage, quant in self.stages
        }
        return {"stages": stages, "output": self.output}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Inverse of `to_dict`. Raises PolicyError for an unknown role or field."""
        stages = []
        for stage, roles in data["stages"].items():
            for role in roles:
                if role not in ROLES:
                    raise PolicyError(f"policy: stages.{stage}.{role}: expected one of {', '.join(ROLES)}{suggest(role, ROLES)}")
            try:
                stages.append((stage, StageQuant(**{role: TensorQuant(**quant) for role, quant in roles.items()})))
            except TypeError as error:
                raise PolicyError(f"policy: stages.{stage}: {error}") from error
        return cls(tuple(stages), data.get("output", "float"))


def all_float(stages: Iterable[str]) -> Policy:
    """The float network."""
    return Policy(tuple((stage, StageQuant()) for stage in stages))


def uniform(
    shorthand: str,
    stages: Mapping[str, Iterable[Role]],
    quantizer: str = "minmax",
    clipping: str = "minmax",
    formats: Mapping[Role, Formats] = INTEGER_RUNTIME,
    output: Output = "float",
) -> Policy:
    """A policy from `w/a/s` (or `w/a`, skip float), or per stage from `stage=w/a/s,stage=w/a/s`.

    stages: the model's stages and the roles each has a site for; a role without a site stays float. formats, output: of the
    target; the float network gives float everywhere.
    Raises PolicyError when the text is malformed, names an unknown stage, or a width the target has not.
    """
    if "=" in shorthand:
        per_stage = {}
        for part in shorthand.split(","):
            stage, bits = _parse_stage(part, stages)
            if stage in per_stage:
                raise PolicyError(f"policy '{shorthand}': stage '{stage}' is given twice; give every stage once")
            per_stage[stage] = bits
        missing = [stage for stage in stages if stage not in per_stage]
        if missing:
            raise PolicyError(f"policy '{shorthand}': no bits for {', '.join(missing)}; give every stage as stage=w/a/s")
    else:
        per_stage = dict.fromkeys(stages, _parse_bits(shorthand))
    quants = []
    for stage, roles in stages.items():
        own = {}
        for role, width in zip(ROLES, per_stage[stage], strict=True):
            if role in roles:
                has = formats[role]
                quant = TensorQuant(width, quantizer, clipping, has.granularity[0], has.signed[0])
                own[str(role)] = FLOAT if quant.is_float else quant
        quants.append((stage, StageQuant(**own)))
    policy = Policy(tuple(quants), output)
    if policy.is_float:  # what others are compared with, on every target
        return replace(policy, output="float")
    _check_widths(shorthand, policy, stages, formats)
    return policy


def _check_widths(shorthand: str, policy: Policy, stages: Mapping[str, Iterable[Role]], formats: Mapping[Role, Formats]) -> None:
    for stage, quant in policy.stages:
        for role in stages[stage]:
            bits, has = quant.role(role).bits, formats[role].bits
            if bits not in has:
                widths = ", ".join(map(str, has))
                raise PolicyError(f"policy '{shorthand}': {stage}.{role}: the target has no {bits} bits; give one of {widths}")


def _parse_stage(part: str, stages: Mapping[str, Iterable[Role]]) -> tuple[str, tuple[int, int, int]]:
    stage, _, bits = part.strip().partition("=")
    if stage not in stages:
        raise PolicyError(f"policy: no stage '{stage}'{suggest(stage, stages)}; type one of {', '.join(stages)}")
    return stage, _parse_bits(bits)


def _parse_bits(text: str) -> tuple[int, int, int]:
    parts = text.strip().split("/")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise PolicyError(
            f"policy '{text}': expected two or three widths in bits, weight/activation or weight/activation/skip, for example 8/8/8"
        )
    weight, activation, *skip = (int(part) for part in parts)
    return weight, activation, skip[0] if skip else FLOAT_BITS
