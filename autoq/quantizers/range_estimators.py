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

CANDIDATES = 64
"""Ranges that `mse` and `entropy` choose from: 1 to 64 64ths of the full range."""

BINS = 2048
"""Bins of `entropy`'s histogram over the full range."""

SMALLEST_SHARE = 1e-12
"""A share of Q where P has values and Q has none: far, but not infinitely far, from it."""

ROWS_AT_ONCE = 8
"""Rows `entropy` works on together: each takes CANDIDATES x BINS numbers, several times."""

MSE_STEPS = (8, 4, 2, 1)
"""Strides of `mse`'s search, in 64ths of the full range: a look at all of it, then closer around the best."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of a tensor: its exact extremes and a sample of its values, per row.

    low, high: [rows]; sample: [rows, values]; batches: (lows, highs), each [rows, batches], of a tensor that was seen in
    batches. The range of each rule and format is found once and kept.
    """

    low: Tensor
    high: Tensor
    sample: Tensor
    batches: tuple[Tensor, Tensor] | None = None
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


def moving_minmax(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The mean of the batches' extremes: FQSR (Wang et al. 2021), equation 4. A weight is one batch."""
    lows, highs = statistics.batches or (statistics.low[:, None], statistics.high[:, None])
    return lows.double().mean(1).float(), highs.double().mean(1).float()


def clipped_relu(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """max(0, min(x, 1)), as XLSR bounds its output (Ayazoglu 2021, equation 2); magnitudes up to 1 when signed."""
    return statistics.low.clamp(-1.0 if signed else 0.0, 1.0), statistics.high.clamp(-1.0 if signed else 0.0, 1.0)


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


def entropy(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The range, shrunk in 64ths, that keeps most of the distribution: least KL(P || Q) of two histograms of the sample.

    P is the sample clipped to the range, so what lies outside is in the outermost bins; Q is what is left of the values
    inside: a level's share, spread evenly over those of its bins where P has any (Migacz 2017, 8-bit inference with
    TensorRT). The widest of equals.
    """
    parts = [
        _entropies(statistics, slice(row, row + ROWS_AT_ONCE), bits, signed) for row in range(0, len(statistics.low), ROWS_AT_ONCE)
    ]
    factor = (CANDIDATES - torch.cat(parts).flip(1).argmin(1)) / CANDIDATES
    return statistics.low * factor, statistics.high * factor


def _entropies(statistics: Statistics, rows: slice, bits: int, signed: bool) -> Tensor:
    """KL(P || Q) of every candidate, float64 [rows, CANDIDATES], the narrowest first."""
    low, high, sample = statistics.low[rows].double(), statistics.high[rows].double(), statistics.sample[rows].double()
    width = ((high - low) / BINS).clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    place = ((sample - low[:, None]) / width).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(low), BINS, dtype=torch.float64).scatter_add_(1, place, torch.ones_like(sample))
    centres = low[:, None] + (torch.arange(BINS) + 0.5) * width

    factor = torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
    lows, highs = low[:, None, None] * factor[:, None], high[:, None, None] * factor[:, None]
    scale, zero_point = affine_parameters(lows.float(), highs.float(), bits, signed)
    levels = (centres[:, None] / scale + zero_point).round().clamp_(*integer_range(bits, signed))
    level = torch.zeros_like(levels, dtype=torch.long)  # numbered from 0, so that wide formats need no more room than bins
    level[..., 1:] = (levels.diff(dim=2) != 0).cumsum(2)

    bins = centres[:, None].clamp(lows, highs)  # where the values of a bin are when clipped
    target = ((bins - low[:, None, None]) / width[:, None]).long().clamp_(0, BINS - 1)
    inside = (centres[:, None] >= lows) & (centres[:, None] <= highs)
    counts = counts[:, None].expand_as(levels)
    p = torch.zeros_like(levels).scatter_add_(2, target, counts)
    present = (p > 0).double()
    mass = torch.zeros_like(levels).scatter_add_(2, level, counts * inside)
    room = torch.zeros_like(levels).scatter_add_(2, level, present)
    q = (mass / room.clamp(min=1)).gather(2, level) * present
    p, q = (part / part.sum(2, keepdim=True).clamp(min=1) for part in (p, q))
    divergence: Tensor = torch.special.xlogy(p, p / q.clamp(min=SMALLEST_SHARE)).sum(2)
    return divergence


CLIPPINGS: dict[str, Rule] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "moving_minmax": moving_minmax,
    "entropy": entropy,
    "clipped_relu": clipped_relu,
}
