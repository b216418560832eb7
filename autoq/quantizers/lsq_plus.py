"""LSQ with a learned offset (LSQ+)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import fake_quantize_learned, straight_through


class LSQPlus(LearnedScale):
    """A trained scale s and offset beta: LSQ+ (Bhalgat et al. 2020), equations 1-3.

    x_hat = round(clip((x - beta) / s, n, p)) * s + beta for unsigned formats (n = 0, p = 2^b - 1). beta is rounded to a
    multiple of s with a straight-through gradient, so that the zero point -beta / s is an integer and zero, the padding value
    of convolutions, is a level. Signed formats are symmetric like the paper's weights and have no offset. The gradient of s
    is that of LSQ; the gradient of beta is 1 if x is clipped, otherwise 0; both are multiplied by g = 1 / sqrt(N * Q_P).
    The offset is stored in units of the initial range, so that one learning rate fits tensors of any magnitude.
    """

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.offset = None if quant.signed else nn.Parameter(torch.zeros_like(self.initial_scale))

    def _zero_point(self) -> Tensor:
        """The zero point: an integer in float32 with the gradient of -beta / s."""
        if self.offset is None:
            return self.initial_zero_point.float()
        beta = (self.offset * (self.qmax - self.qmin) - self.initial_zero_point) * self.initial_scale
        zero_point = -beta / self.scale
        return straight_through(zero_point.round().clamp(self.qmin, self.qmax), zero_point)

    @property
    def zero_point(self) -> Tensor:
        return self._zero_point().detach().to(torch.int32)

    def simulate(self, x: Tensor) -> Tensor:
        scale = self.scale
        factor = 1.0 / math.sqrt(x.numel() / scale.numel() * self.qmax)
        return fake_quantize_learned(x, scale, self._zero_point(), self.qmin, self.qmax, factor)
