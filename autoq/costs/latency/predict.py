"""Latency of structures that nobody measured: what each stage adds, fitted to a sample of structures that were measured.

Where a network is searched layer by layer its structures cannot all be measured (37 layers: 2^37 and more). Times of
layers add up but for what is spent where a tensor changes between float and integers, which is a term of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from autoq.config.policy import Policy

Matrix = NDArray[np.float64]

Run = tuple[bool, bool]
"""Of a stage, whether its layers run on integers, and whether its skips are integers."""

PENALTIES = np.logspace(-3, 2, 11)
"""Tried for the ridge; the one that predicts structures best that are left out is taken."""


class AdditiveLatency(BaseModel):
    """Milliseconds of a policy: the float network's, what every stage on integers and every stage with quantized skips adds
    (less than nothing where it saves), and `boundary` wherever a stage on integers meets one in float.

    least_ms: the fastest measured structure's; nothing is predicted to be faster. integer_bits: the widest integer of the
    target. images: stages that read the image alone, whose activations are none of the policy's. typical, worst: relative
    error for structures left out of the fit, its median and its 95th percentile. sample: structures it was fitted to.
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
        """Milliseconds of a whole policy."""
        how = runs(policy, self.integer_bits, self.images)
        return max(self.least_ms, self.apart(policy) + self.boundary * changes(how))

    def apart(self, policy: Policy) -> float:
        """The part of `ms` that adds up over stages."""
        how = runs(policy, self.integer_bits, self.images)
        return self.parts({stage: run for (stage, _), run in zip(policy.stages, how, strict=True)})

    def parts(self, how: Mapping[str, Run]) -> float:
        """What the float network and the stages come to, without what a change between integers and float costs."""
        return self.float_ms + sum(
            integer * self.integers[stage] + skip * self.skips[stage] for stage, (integer, skip) in how.items()
        )


def fit(
    stages: Sequence[str],
    how: Sequence[Sequence[Run]],
    ms: Sequence[float],
    float_ms: float,
    integer_bits: int,
    images: Sequence[str] = (),
) -> AdditiveLatency:
    """Least squares of relative errors, in which stages are alike unless the measurements say otherwise (ridge).

    how: of every measured structure, how each stage runs. ms: of every measured structure. float_ms: of the float network,
    which is kept as it is.
    """
    formats = np.array(how, float)
    integers, skips = formats[:, :, 0], formats[:, :, 1]
    alike = np.column_stack([integers.sum(1), skips.sum(1), [changes(each) for each in how]])
    columns = np.column_stack([integers, skips, alike])
    apart = np.concatenate([np.ones(2 * len(stages)), np.full(alike.shape[1], 1e-9)])  # only what differs is held back
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
        sample=len(how),
    )


def runs(policy: Policy, integer_bits: int, images: Collection[str]) -> list[Run]:
    """How every stage runs.

    images: stages that read the image alone, which always is one of integers.
    """
    return [
        (max(quant.weight.bits, 0 if stage in images else quant.activation.bits) <= integer_bits, quant.skip.bits <= integer_bits)
        for stage, quant in policy.stages
    ]


def changes(how: Sequence[Run]) -> int:
    """How often a stage on integers meets one in float."""
    return sum(a != b for (a, _), (b, _) in itertools.pairwise(how))


def _ridge(columns: Matrix, penalties: Matrix) -> Matrix:
    """What gains are multiplied by to give the weights."""
    return np.asarray(np.linalg.solve(columns.T @ columns + np.diag(penalties), columns.T), np.float64)


def _left_out(columns: Matrix, gains: Matrix, penalties: Matrix) -> Matrix:
    """Errors of the prediction of each row from all others."""
    hat = columns @ _ridge(columns, penalties)
    found: Matrix = (gains - hat @ gains) / np.maximum(1 - np.diag(hat), 1e-9)
    return found


def _rounded(stages: Sequence[str], values: Matrix) -> dict[str, float]:
    return {stage: round(float(value), 6) for stage, value in zip(stages, values, strict=True)}
