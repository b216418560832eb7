"""Clipping rules: which range of a tensor's values a quantizer covers.

A rule maps samples (rows = channels, columns = values; float32) and the integer format to
(low, high), one entry per row. Rules see samples, not tensors, so they are cheap and exact in their statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoq.quantizers.functional import affine_parameters, integer_range

PERCENTILE = 99.9
"""Share of the values, in percent, that `percentile` keeps: half of the rest is cut at each end."""

MSE_STEPS = (8, 4, 2, 1)
"""Strides of `mse`'s search, in 64ths of the full range: a look at all of it, then closer around the best."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of a tensor: its exact extremes and a sample of its values, per row.

    low, high: [rows]; sample: [rows, values]. The range of each rule and format is found once and kept.
    """

    low: Tensor
    high: Tensor
    sample: Tensor
    _ranges: dict[tuple[str, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_tensor(cls, values: Tensor, per_channel: bool) -> Statistics:
        """All values of a tensor (a weight), one row per slice of dimension 0 if `per_channel`."""
        rows = values.detach().float()
        rows = rows.reshape(rows.shape[0] if per_channel else 1, -1)
        return cls(rows.amin(1), rows.amax(1), rows)

    def range(self, clipping: str, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
        """(low, high) of a clipping rule for an integer format, each [rows]."""
        key = (clipping, bits, signed)
        if key not in self._ranges:
            self._ranges[key] = CLIPPINGS[clipping](self, bits, signed)
        return self._ranges[key]


Rule = Callable[[Statistics, int, bool], tuple[Tensor, Tensor]]


def minmax(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The full range: nothing is clipped."""
    return statistics.low, statistics.high


def percentile(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The central 99.9 % of the values (of the magnitudes, when signed)."""
    sample = statistics.sample.double()
    if signed:
        high = torch.quantile(sample.abs(), PERCENTILE / 100, dim=1).float()
        return -high, high
    tail = (1 - PERCENTILE / 100) / 2
    return torch.quantile(sample, tail, dim=1).float(), torch.quantile(sample, 1 - tail, dim=1).float()


def mse(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The range, shrunk in 64ths, with the least mean squared error of the sample; searched from coarse to fine."""
    shrunk, least = torch.full_like(statistics.low, 64), torch.full_like(statistics.low, torch.inf)

    def consider(candidate: Tensor) -> None:
        nonlocal shrunk, least
        error = _squared_error(statistics, candidate / 64, bits, signed)
        better = error < least
        shrunk, least = torch.where(better, candidate, shrunk), torch.where(better, error, least)

    widest, *closer = MSE_STEPS
    for candidate in range(64, 0, -widest):
        consider(torch.full_like(shrunk, candidate))
    for stride in closer:
        around = shrunk
        consider((around + stride).clamp(max=64))
        consider((around - stride).clamp(min=1))
    return statistics.low * shrunk / 64, statistics.high * shrunk / 64


def _squared_error(statistics: Statistics, factor: Tensor, bits: int, signed: bool) -> Tensor:
    """Mean squared error, per row, of a sample quantized over the row's full range times its factor."""
    qmin, qmax = integer_range(bits, signed)
    sample = statistics.sample
    scale, zero_point = affine_parameters(statistics.low * factor, statistics.high * factor, bits, signed)
    s, z = scale[:, None], zero_point[:, None]
    return (sample / s).round_().add_(z).clamp_(qmin, qmax).sub_(z).mul_(s).sub_(sample).square_().mean(1)


CLIPPINGS: dict[str, Rule] = {"minmax": minmax, "percentile": percentile, "mse": mse}
