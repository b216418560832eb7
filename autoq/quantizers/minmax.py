"""Affine quantization with a fixed range."""

from __future__ import annotations

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import fake_quantize

IMAGE_QUANT = TensorQuant(bits=8, signed=False)
"""Format of the image: 8 bits with scale 1/255 and zero point 0, unless it stays float."""


class MinMax(Quantizer):
    """The range from calibration, not trained, with a straight-through gradient inside it.

    Liu et al. 2021 (multi-precision SR), equations 1-2: q = round(s x + z), here with scale = 1 / s.
    """

    def simulate(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax)


def image_quantizer() -> MinMax:
    """The quantizer with the grid of 8-bit images: scale exactly 1/255, zero point 0."""
    quantizer = MinMax(IMAGE_QUANT, torch.zeros(1), torch.ones(1))
    quantizer.initial_scale.fill_(1 / 255)
    return quantizer
