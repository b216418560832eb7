"""DoReFa-Net quantization of weights and activations."""

from __future__ import annotations

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.binary import Binary
from autoq.quantizers.functional import Grid, fake_quantize, per_slice, positive, positive_grid, straight_through


def dorefa(quant: TensorQuant, low: Tensor, high: Tensor) -> Quantizer:
    """DoReFa-Net (Zhou et al. 2016): weights by equation 9 (1 bit: equation 7), activations by equation 11."""
    if not quant.signed:
        return DoReFaActivations(quant, low, high)
    return (DoReFaBinary if quant.bits == 1 else DoReFaWeights)(quant, low, high)


class DoReFaWeights(Quantizer):
    """w_q = E (2 quantize_b(tanh(w) / (2 max |tanh(w)|) + 1/2) - 1), with quantize_b(r) = round((2^b - 1) r) / (2^b - 1).

    The paper's levels fill [-1, 1], for networks trained from scratch. E = max |w| restores the magnitude of trained weights
    (E = 1 in the paper). The 2^b levels are the odd integers from -(2^b - 1) to 2^b - 1, so zero is not a level, and b-bit
    weights run as integers of b + 1 bits. The gradient differentiates everything except the rounding and E, including the
    maximum of tanh. All values are of the current weights (of each filter, per channel). The range estimator has no effect.
    """

    elementwise = False

    def start(self, low: Tensor, high: Tensor) -> Grid:
        top = 2**self.quant.bits - 1
        return -top, top, positive(torch.maximum(-low, high) / top), torch.zeros_like(low, dtype=torch.int32)

    def observe(self, x: Tensor) -> None:
        self.initial_scale = positive(x.detach().abs().reshape(self.initial_scale.numel(), -1).amax(1) / self.qmax)

    def simulate(self, x: Tensor) -> Tensor:
        position = self._position(x)
        return straight_through(_odd(position, self.qmax), position).float() * per_slice(self.scale, x)

    def _position(self, x: Tensor) -> Tensor:
        """Positions of the weights between -qmax and qmax, float64."""
        squashed = torch.tanh(x.double())
        largest = squashed.abs().reshape(self.initial_scale.numel(), -1).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
        return self.qmax * squashed / per_slice(largest, x)

    def _integers(self, x: Tensor) -> Tensor:
        return _odd(self._position(x.detach()), self.qmax).float()


def _odd(position: Tensor, top: int) -> Tensor:
    """Round to the nearest odd integer between -top and top, as quantize_b does."""
    return 2 * torch.round((position + top) / 2) - top


class DoReFaBinary(Binary):
    """w_q = E|w| sign(w), where E|w| is the mean magnitude; straight-through gradient."""

    def _factor(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


class DoReFaActivations(Quantizer):
    """quantize_b of a bounded activation: [0, 1] in the paper, here [0, upper end of the estimated range].

    Straight-through gradient inside the range. Negative values become 0.
    """

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return positive_grid(high, self.quant.bits)

    def simulate(self, x: Tensor) -> Tensor:
        top = per_slice(self.scale * self.qmax, x)
        bounded = torch.where(x > top, top, x.clamp(min=0))
        return straight_through(fake_quantize(x.detach(), self.scale, self.zero_point, self.qmin, self.qmax), bounded)
