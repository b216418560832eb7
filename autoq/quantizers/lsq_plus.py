"""LSQ with a learned offset."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import fake_quantize_learned, straight_through


class LSQPlus(LearnedScale):
    """Scale s and offset beta are trained: LSQ+ (Bhalgat et al. 2020), equations 1-3 and their gradients.

    x_hat = round(clip((x - beta) / s, n, p)) * s + beta for unsigned formats (n = 0, p = 2^b - 1). beta is rounded to a
    multiple of s, straight through: the zero point -beta / s is an integer then, and zero, which convolutions pad with,
    is a level. Signed formats stay symmetric, as the paper's weights do, and have no offset. Gradients: of s as LSQ's;
    of beta 1 where x is clipped, 0 inside; both multiplied by LSQ's g = 1 / sqrt(N * Q_P).
    The offset is kept in units of the whole range at the start, so one learning rate suits tensors of any magnitude.
    """

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.offset = None if quant.signed else nn.Parameter(torch.zeros_like(self.initial_scale))

    def _place(self) -> Tensor:
        """The zero point: an integer, float32, with the gradient of -beta / s."""
        if self.offset is None:
            return self.initial_zero_point.float()
        beta = (self.offset * (self.qmax - self.qmin) - self.initial_zero_point) * self.initial_scale
        place = -beta / self.scale
        return straight_through(place.round().clamp(self.qmin, self.qmax), place)

    @property
    def zero_point(self) -> Tensor:
        return self._place().detach().to(torch.int32)

    def simulate(self, x: Tensor) -> Tensor:
        scale = self.scale
        factor = 1.0 / math.sqrt(x.numel() / scale.numel() * self.qmax)
        return fake_quantize_learned(x, scale, self._place(), self.qmin, self.qmax, factor)
