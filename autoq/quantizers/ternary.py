"""Ternary weights (TWN)."""

from __future__ import annotations

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import Grid, per_slice, positive, straight_through

SHARE = 0.7
"""Threshold relative to the mean magnitude."""


class Ternary(Quantizer):
    """Levels -alpha, 0 and alpha: Ternary Weight Networks (Li et al. 2016), equations 3-6.

    Weights with magnitudes up to delta = 0.7 mean |W| become 0; alpha is the mean of the magnitudes above delta. Both are
    computed from the current weights (of each filter, per channel). The gradient is straight-through. The range estimator has
    no effect.
    """

    elementwise = False
    threshold: Tensor

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.register_buffer("threshold", SHARE * self.initial_scale)

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return -1, 1, positive(torch.maximum(-low, high)), torch.zeros_like(low, dtype=torch.int32)

    def observe(self, x: Tensor) -> None:
        magnitudes = x.detach().reshape(self.threshold.numel(), -1).double().abs()
        self.threshold = (SHARE * magnitudes.mean(1)).float()
        above = magnitudes > self.threshold[:, None]
        self.initial_scale = positive((magnitudes * above).sum(1) / above.sum(1).clamp(min=1))

    def simulate(self, x: Tensor) -> Tensor:
        return straight_through(self._quantized(x), x)

    def _integers(self, x: Tensor) -> Tensor:
        return torch.sign(x) * (x.abs() > per_slice(self.threshold, x))
