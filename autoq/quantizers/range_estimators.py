"""Range estimators: choose the range of a tensor's values that a quantizer covers.

A range estimator maps statistics of a tensor (rows are channels, columns are sampled values; float32) and an integer format
to (low, high), one entry per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoq.quantizers.functional import affine_parameters, integer_range

PERCENTILE = 99.9
"""Percentage of the values inside the range of `percentile`; half of the rest is clipped at each end."""

CANDIDATES = 64
"""Number of candidate ranges of `mse` and `entropy`: 1/64 to 64/64 of the full range."""

BINS = 2048
"""Number of histogram bins of `entropy` over the full range."""

SMALLEST_SHARE = 1e-12
"""Lower bound of Q for bins where P is positive, to keep the divergence finite."""

ROWS_AT_ONCE = 8
"""Rows processed together by `entropy`; each needs several arrays of CANDIDATES x BINS."""

MSE_STEPS = (8, 4, 2, 1)
"""Strides of the coarse-to-fine search of `mse`, in 64ths of the full range."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a tensor per row. Estimated ranges are cached per estimator and format.

    Attributes:
        low: Exact minima, [rows].
        high: Exact maxima, [rows].
        sample: Sampled values, [rows, values].
        batches: (minima, maxima) per calibration batch, each [rows, batches]; None for a weight.
    """

    low: Tensor
    high: Tensor
    sample: Tensor
    batches: tuple[Tensor, Tensor] | None = None
    _ranges: dict[tuple[str, int, bool], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_tensor(cls, values: Tensor, per_channel: bool) -> Statistics:
        """Statistics of all values of a weight, with one row per slice of dimension 0 if `per_channel`."""
        rows = values.detach().float()
        rows = rows.reshape(rows.shape[0] if per_channel else 1, -1)
        return cls(rows.amin(1), rows.amax(1), rows)

    def range(self, clipping: str, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
        """(low, high) of a range estimator for an integer format, each [rows]."""
        key = (clipping, bits, signed)
        if key not in self._ranges:
            self._ranges[key] = CLIPPINGS[clipping](self, bits, signed)
        return self._ranges[key]


Rule = Callable[[Statistics, int, bool], tuple[Tensor, Tensor]]


def minmax(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The full range, without clipping."""
    return statistics.low, statistics.high


def moving_minmax(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The mean of the batches' extremes: FQSR (Wang et al. 2021), equation 4. A weight counts as one batch."""
    lows, highs = statistics.batches or (statistics.low[:, None], statistics.high[:, None])
    return lows.double().mean(1).float(), highs.double().mean(1).float()


def clipped_relu(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The range clipped to [0, 1], or [-1, 1] if signed, as in XLSR's output (Ayazoglu 2021, equation 2)."""
    return statistics.low.clamp(-1.0 if signed else 0.0, 1.0), statistics.high.clamp(-1.0 if signed else 0.0, 1.0)


def percentile(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The central 99.9 % of the values (if signed, of the magnitudes)."""
    sample = statistics.sample.double()
    if signed:
        high = torch.quantile(sample.abs(), PERCENTILE / 100, dim=1).float()
        return -high, high
    tail = (1 - PERCENTILE / 100) / 2
    return torch.quantile(sample, tail, dim=1).float(), torch.quantile(sample, 1 - tail, dim=1).float()


def mse(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The scaled full range with the smallest mean squared error of the sample, found by a coarse-to-fine search."""
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
    """Mean squared error per row if the sample is quantized over the full range times a factor."""
    qmin, qmax = integer_range(bits, signed)
    sample = statistics.sample
    scale, zero_point = affine_parameters(statistics.low * factor, statistics.high * factor, bits, signed)
    s, z = scale[:, None], zero_point[:, None]
    return (sample / s).round_().add_(z).clamp_(qmin, qmax).sub_(z).mul_(s).sub_(sample).square_().mean(1)


def entropy(statistics: Statistics, bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The scaled full range with the smallest KL(P || Q) of two histograms (Migacz 2017, 8-bit Inference with TensorRT).

    P is the histogram of the sample clipped to the range, so clipped values are in the outermost bins. Q is the histogram
    after quantization of the values inside the range: the mass of each level, spread evenly over its bins with P > 0. Ties
    are resolved in favour of the widest range.
    """
    parts = [
        _entropies(statistics, slice(row, row + ROWS_AT_ONCE), bits, signed) for row in range(0, len(statistics.low), ROWS_AT_ONCE)
    ]
    factor = (CANDIDATES - torch.cat(parts).flip(1).argmin(1)) / CANDIDATES
    return statistics.low * factor, statistics.high * factor


def _entropies(statistics: Statistics, rows: slice, bits: int, signed: bool) -> Tensor:
    """KL(P || Q) of every candidate, narrowest first, float64 [rows, CANDIDATES]."""
    low, high, sample = statistics.low[rows].double(), statistics.high[rows].double(), statistics.sample[rows].double()
    width = ((high - low) / BINS).clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    index = ((sample - low[:, None]) / width).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(low), BINS, dtype=torch.float64).scatter_add_(1, index, torch.ones_like(sample))
    centres = low[:, None] + (torch.arange(BINS) + 0.5) * width

    factor = torch.arange(1, CANDIDATES + 1, dtype=torch.float64) / CANDIDATES
    lows, highs = low[:, None, None] * factor[:, None], high[:, None, None] * factor[:, None]
    scale, zero_point = affine_parameters(lows.float(), highs.float(), bits, signed)
    levels = (centres[:, None] / scale + zero_point).round().clamp_(*integer_range(bits, signed))
    level = torch.zeros_like(levels, dtype=torch.long)  # renumber from 0, so that wide formats need no more memory than bins
    level[..., 1:] = (levels.diff(dim=2) != 0).cumsum(2)

    bins = centres[:, None].clamp(lows, highs)  # bin centres after clipping
    target = ((bins - low[:, None, None]) / width[:, None]).long().clamp_(0, BINS - 1)
    inside = (centres[:, None] >= lows) & (centres[:, None] <= highs)
    counts = counts[:, None].expand_as(levels)
    p = torch.zeros_like(levels).scatter_add_(2, target, counts)
    present = (p > 0).double()
    mass = torch.zeros_like(levels).scatter_add_(2, level, counts * inside)
    occupied = torch.zeros_like(levels).scatter_add_(2, level, present)
    q = (mass / occupied.clamp(min=1)).gather(2, level) * present
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
