"""Parameterized clipping activation (PACT)."""

from __future__ import annotations

import torch
from torch import Tensor

from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import Grid, fake_quantize, per_slice, positive_grid, straight_through


class PACT(LearnedScale):
    """A trained upper bound alpha: PACT (Choi et al. 2018), equations 1-3.

    y = clip(x, 0, alpha); y_q = round(y (2^b - 1) / alpha) alpha / (2^b - 1). The gradient of alpha is 1 if x >= alpha,
    otherwise 0; the gradient of x is 1 between 0 and alpha, otherwise 0. alpha starts at the upper end of the estimated
    range. PACT is meant for ReLU outputs; negative values become 0. The paper's regularization of alpha is not included.
    """

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return positive_grid(high, self.quant.bits)

    def simulate(self, x: Tensor) -> Tensor:
        scale = self.scale
        alpha = per_slice(scale * self.qmax, x)
        clipped = torch.where(x >= alpha, alpha, x.clamp(min=0))
        return straight_through(fake_quantize(x.detach(), scale.detach(), self.zero_point, self.qmin, self.qmax), clipped)
