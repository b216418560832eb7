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

MSE_CANDIDATES = 64
"""Shrunk ranges that `mse` tries, evenly from the full range down to 1/64 of it."""


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
    """The shrunk range with the least mean squared error of the sample, by search over 64 shrink factors."""
    qmin, qmax = integer_range(bits, signed)
    sample = statistics.sample
    best = torch.full_like(statistics.low, torch.inf)
    low, high = statistics.low.clone(), statistics.high.clone()
    for step in range(MSE_CANDIDATES, 0, -1):
        factor = step / MSE_CANDIDATES
        scale, zero_point = affine_parameters(statistics.low * factor, statistics.high * factor, bits, signed)
        s, z = scale[:, None], zero_point[:, None]
        error = (((sample / s).round_().add_(z).clamp_(qmin, qmax).sub_(z)).mul_(s).sub_(sample)).square_().mean(1)
        better = error < best
        best = torch.where(better, error, best)
        low = torch.where(better, statistics.low * factor, low)
        high = torch.where(better, statistics.high * factor, high)
    return low, high


CLIPPINGS: dict[str, Rule] = {"minmax": minmax, "percentile": percentile, "mse": mse}
