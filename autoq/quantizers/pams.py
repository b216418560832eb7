"""Parameterized max scale."""

from __future__ import annotations

from torch import Tensor

from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import Grid, fake_quantize_learned, symmetric_grid


class PAMS(LearnedScale):
    """The largest magnitude alpha is trained: PAMS (Li et al. 2020), its equations of activations.

    x_q = round(clip(x, -alpha, alpha) / s) * s with s = alpha / (2^(b-1) - 1), for data of either sign: in unsigned formats
    the zero point is 2^(b-1) - 1. Gradient of alpha, all but the rounding differentiated: the sign of x where x is clipped,
    else (x_q - x) / alpha. alpha starts at the clipping rule's range; `moving_minmax` is the paper's.
    The paper's weights are symmetric with alpha = max |w|, not trained: `minmax`.
    """

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return symmetric_grid(low, high, self.quant.bits, self.quant.signed)

    def simulate(self, x: Tensor) -> Tensor:
        return fake_quantize_learned(x, self.scale, self.zero_point, self.qmin, self.qmax, 1.0)
