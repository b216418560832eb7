"""DoReFa-Net's weights and activations."""

from __future__ import annotations

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.binary import Binary
from autoq.quantizers.functional import Grid, fake_quantize, per_slice, positive, positive_grid, straight_through


def dorefa(quant: TensorQuant, low: Tensor, high: Tensor) -> Quantizer:
    """DoReFa-Net (Zhou et al. 2016): weights by equation 9 (of one bit by equation 7), activations by equation 11."""
    if not quant.signed:
        return DoReFaActivations(quant, low, high)
    return (DoReFaBinary if quant.bits == 1 else DoReFaWeights)(quant, low, high)


class DoReFaWeights(Quantizer):
    """w_q = E (2 quantize_b(tanh(w) / (2 max |tanh(w)|) + 1/2) - 1), with quantize_b(r) = round((2^b - 1) r) / (2^b - 1).

    The paper's levels fill [-1, 1], for networks trained from scratch; E = max |w| takes them back to the magnitude of
    trained weights (1 gives the paper's). The 2^b levels are the odd integers up to 2^b - 1, so there is no zero, and b
    bits are executed as integers of b + 1. Gradient: all but the rounding and E is differentiated, the maximum of tanh
    too. All is of the current weights (a filter's, per channel); the clipping rule plays no part.
    """

    def start(self, low: Tensor, high: Tensor) -> Grid:
        top = 2**self.quant.bits - 1
        return -top, top, positive(torch.maximum(-low, high) / top), torch.zeros_like(low, dtype=torch.int32)

    def observe(self, x: Tensor) -> None:
        self.initial_scale = positive(x.detach().abs().reshape(self.initial_scale.numel(), -1).amax(1) / self.qmax)

    def simulate(self, x: Tensor) -> Tensor:
        place = self._place(x)
        return straight_through(_odd(place, self.qmax), place).float() * per_slice(self.scale, x)

    def _place(self, x: Tensor) -> Tensor:
        """Where the weights lie between -qmax and qmax, float64."""
        bent = torch.tanh(x.double())
        largest = bent.abs().reshape(self.initial_scale.numel(), -1).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
        return self.qmax * bent / per_slice(largest, x)

    def _integers(self, x: Tensor) -> Tensor:
        return _odd(self._place(x.detach()), self.qmax).float()


def _odd(place: Tensor, top: int) -> Tensor:
    """The odd integer between -top and top that quantize_b takes a place to."""
    return 2 * torch.round((place + top) / 2) - top


class DoReFaBinary(Binary):
    """w_q = E |w| sign(w), E |w| the mean magnitude; gradients pass straight through."""

    def _factor(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


class DoReFaActivations(Quantizer):
    """quantize_b of what a bounded activation gives: [0, 1] in the paper, here up to the clipping rule's upper end.

    Gradients pass straight through inside. Negative values become 0.
    """

    def start(self, low: Tensor, high: Tensor) -> Grid:
        return positive_grid(high, self.quant.bits)

    def simulate(self, x: Tensor) -> Tensor:
        top = per_slice(self.scale * self.qmax, x)
        bounded = torch.where(x > top, top, x.clamp(min=0))
        return straight_through(fake_quantize(x.detach(), self.scale, self.zero_point, self.qmin, self.qmax), bounded)
