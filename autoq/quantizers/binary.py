"""Binary weights (XNOR-Net)."""

from __future__ import annotations

import torch
from torch import Tensor

from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import Grid, per_slice, positive, straight_through


class Binary(Quantizer):
    """Sign times mean magnitude: XNOR-Net (Rastegari et al. 2016), equations 4 and 6. Zero is not a level.

    W ~ alpha sign(W) with alpha = mean |W| of the current weights (of each filter, per channel) and sign(0) = +1. Without
    alpha this is BinaryConnect (Courbariaux et al. 2015). The gradient is that of the binary weight times
    1/n + alpha 1[|w| <= 1], as published, with n weights per alpha. The range estimator has no effect.
    """

    elementwise = False

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return -1, 1, positive(torch.maximum(-low, high)), torch.zeros_like(low, dtype=torch.int32)

    def observe(self, x: Tensor) -> None:
        magnitudes = x.detach().reshape(self.initial_scale.numel(), -1).double().abs()
        self.initial_scale = positive(magnitudes.mean(1))

    def simulate(self, x: Tensor) -> Tensor:
        return straight_through(self._quantized(x), x * self._factor(x))

    def _factor(self, x: Tensor) -> Tensor:
        """The factor of the gradient with respect to the weights."""
        share = self.scale.numel() / x.numel()
        return share + per_slice(self.scale, x) * (x.detach().abs() <= 1)

    def _integers(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, -1.0, 1.0)
