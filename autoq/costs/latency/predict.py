"""Latency of structures that were not measured: what each stage adds, fitted to a sample of measured structures.

A network that is searched layer by layer has too many structures to measure them all (37 layers: 2^37 and more). The times
of layers add up, except for the cost of converting a tensor between float and integers, which has a term of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from autoq.config.policy import Policy, StageQuant
from autoq.config.structure import Structure

Matrix = NDArray[np.float64]

PENALTIES = np.logspace(-3, 2, 11)
"""Ridge penalties to try; the one that predicts left-out structures best is used."""


class AdditiveLatency(BaseModel):
    """Predicts milliseconds: the float network's, plus a term per stage on integers, per stage with integer skips, and per change.

    Attributes:
        float_ms: Milliseconds of the float network.
        integers: Milliseconds that each stage adds on integers; negative where it saves time.
        skips: Milliseconds that the integer skips of each stage add.
        boundary: Milliseconds wherever a stage on integers meets one in float.
        least_ms: Milliseconds of the fastest measured structure; no prediction is lower.
        integer_bits: The widest integer of the target.
        images: Stages that read only the image, whose activations no policy sets.
        typical: Median relative error for structures left out of the fit.
        worst: 95th percentile of that error.
        sample: Number of structures it was fitted to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    float_ms: float = Field(gt=0, allow_inf_nan=False)
    integers: dict[str, float]
    skips: dict[str, float]
    boundary: float
    least_ms: float = Field(gt=0, allow_inf_nan=False)
    integer_bits: int
    images: tuple[str, ...] = ()
    typical: float
    worst: float
    sample: int

    def ms(self, policy: Policy) -> float:
        """Milliseconds of a policy."""
        structure = structure_by_widths(policy, self.integer_bits, self.images)
        return max(self.least_ms, self.parts(structure) + self.boundary * structure.changes())

    def apart(self, policy: Policy) -> float:
        """The part of `ms` that adds up over stages."""
        return self.parts(structure_by_widths(policy, self.integer_bits, self.images))

    def parts(self, structure: Structure) -> float:
        """The float network's milliseconds and what the stages add, without the cost of changes between integers and float."""
        return self.float_ms + sum(
            (stage in structure.integer) * self.integers[stage] + (stage in structure.skips) * self.skips[stage]
            for stage in structure.stages
        )


def fit(
    stages: Sequence[str],
    structures: Sequence[Structure],
    ms: Sequence[float],
    float_ms: float,
    integer_bits: int,
    images: Sequence[str] = (),
) -> AdditiveLatency:
    """Fit by least squares of relative errors; stages are alike unless the measurements say otherwise (ridge regression).

    Args:
        stages: All stages, in the order of the search space.
        structures: The measured structures.
        ms: Milliseconds of each.
        float_ms: Milliseconds of the float network, which the fit keeps.
        integer_bits: The widest integer of the target.
        images: Stages that read only the image.
    """
    integers = np.array([[stage in each.integer for stage in stages] for each in structures], float)
    skips = np.array([[stage in each.skips for stage in stages] for each in structures], float)
    changes = [each.ordered(stages).changes() for each in structures]
    alike = np.column_stack([integers.sum(1), skips.sum(1), changes])
    columns = np.column_stack([integers, skips, alike])
    apart = np.concatenate([np.ones(2 * len(stages)), np.full(alike.shape[1], 1e-9)])  # only the differences are penalized
    shares = np.array(ms) / float_ms
    columns, gains = columns / shares[:, None], (shares - 1) / shares
    errors = {penalty: np.abs(_left_out(columns, gains, penalty * apart)) for penalty in PENALTIES}
    penalty = min(PENALTIES, key=lambda each: float(np.mean(errors[each] ** 2)))
    weights = _ridge(columns, penalty * apart) @ gains * float_ms
    of_integers, of_skips = weights[: len(stages)] + weights[-3], weights[len(stages) : -3] + weights[-2]
    return AdditiveLatency(
        float_ms=float_ms,
        integers=_rounded(stages, of_integers),
        skips=_rounded(stages, of_skips),
        boundary=round(float(weights[-1]), 6),
        least_ms=min(ms),
        integer_bits=integer_bits,
        images=tuple(images),
        typical=round(float(np.median(errors[penalty])), 4),
        worst=round(float(np.percentile(errors[penalty], 95)), 4),
        sample=len(structures),
    )


def structure_by_widths(policy: Policy, integer_bits: int, images: Collection[str]) -> Structure:
    """The structure of a policy, from its bit widths alone.

    Args:
        policy: The policy.
        integer_bits: The widest integer of the target.
        images: Stages that read only the image, which is always of integers.
    """

    def on_integers(stage: str, quant: StageQuant) -> bool:
        return max(quant.weight.bits, 0 if stage in images else quant.activation.bits) <= integer_bits

    return Structure(
        stages=tuple(stage for stage, _ in policy.stages),
        integer=tuple(stage for stage, quant in policy.stages if on_integers(stage, quant)),
        skips=tuple(stage for stage, quant in policy.stages if quant.skip.bits <= integer_bits),
    )


def _ridge(columns: Matrix, penalties: Matrix) -> Matrix:
    """The matrix that maps gains to weights."""
    return np.asarray(np.linalg.solve(columns.T @ columns + np.diag(penalties), columns.T), np.float64)


def _left_out(columns: Matrix, gains: Matrix, penalties: Matrix) -> Matrix:
    """Error of predicting each row from all others (leave one out)."""
    hat = columns @ _ridge(columns, penalties)
    found: Matrix = (gains - hat @ gains) / np.maximum(1 - np.diag(hat), 1e-9)
    return found


def _rounded(stages: Sequence[str], values: Matrix) -> dict[str, float]:
    return {stage: round(float(value), 6) for stage, value in zip(stages, values, strict=True)}
