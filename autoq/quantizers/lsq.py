"""Learned step size quantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoq.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import fake_quantize_learned, shorten


class LSQ(Quantizer):
    """The scale is trained with the network: LSQ (Esser et al. 2020), equations 1-3.

    v_hat = s * round(clip(v / s, -Q_N, Q_P)) with Q_N = zero_point - qmin and Q_P = qmax - zero_point, so
    unsigned data (zero point 0) and symmetric data are the paper's two cases, and the clipping rule gives
    the start. The scale's gradient is multiplied by g = 1 / sqrt(N * Q_P), N values per scale (section 2.2).
    The scale is kept as initial_scale * exp(log_gain): one learning rate suits scales of any magnitude, and
    it stays positive.
    """

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.log_gain = nn.Parameter(torch.zeros_like(self.initial_scale))

    @property
    def scale(self) -> Tensor:
        return shorten(self.initial_scale * self.log_gain.exp())

    def simulate(self, x: Tensor) -> Tensor:
        scale = self.scale
        factor = 1.0 / math.sqrt(x.numel() / scale.numel() * self.qmax)
        return fake_quantize_learned(x, scale, self.zero_point, self.qmin, self.qmax, factor)
