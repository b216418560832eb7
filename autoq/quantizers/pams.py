"""Parameterized max scale (PAMS)."""

from __future__ import annotations

from torch import Tensor

from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import Grid, fake_quantize_learned, symmetric_grid


class PAMS(LearnedScale):
    """A trained largest magnitude alpha: PAMS (Li et al. 2020), equations of activations in section 3.

    x_q = round(clip(x, -alpha, alpha) / s) * s with s = alpha / (2^(b-1) - 1), for signed data; unsigned formats use the zero
    point 2^(b-1) - 1. The gradient of alpha differentiates everything except the rounding: sign(x) if x is clipped, otherwise
    (x_q - x) / alpha. alpha starts at the estimated range; the paper's estimator is `moving_minmax`. The paper's weights are
    symmetric with alpha = max |w|, not trained; use `minmax` for them.
    """

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return symmetric_grid(low, high, self.quant.bits, self.quant.signed)

    def simulate(self, x: Tensor) -> Tensor:
        return fake_quantize_learned(x, self.scale, self.zero_point, self.qmin, self.qmax, 1.0)
