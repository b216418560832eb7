"""Incremental quantization to powers of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import LARGEST_SCALE, SMALLEST_SCALE, Grid, per_slice

PORTIONS = (0.5, 0.75, 0.875)
"""Shares of the weights that are fixed in each third of the training; at its end, all are."""


class INQ(Quantizer):
    """Zero and powers of two, weights being fixed group by group: INQ (Zhou et al. 2017), equations 1-4.

    Levels 0, +-2^n2, ..., +-2^n1 with n1 = floor(log2(4 s / 3)), s = max |W| (by the clipping rule, at calibration) and
    n2 = n1 + 1 - 2^(b-1) / 2; between neighbours a < c the border is (a + c) / 2. In units of 2^n2 these are the integers
    0, +-1, +-2, +-4, ..., which widths up to 4 bits hold in 5 bits and 5 bits in 9. While training, the largest half
    of the weights is on its levels and stays there, then 75 and 87.5 %; the others are float and train on (equation 7).
    """

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.count = 0
        self.fixed: Tensor | None = None
        self.levels: Tensor | None = None

    def start(self, low: Tensor, high: Tensor) -> Grid:
        largest = torch.maximum(-low, high).double().clamp(SMALLEST_SCALE, LARGEST_SCALE)
        octaves = 2 ** (self.quant.bits - 2) - 1
        scale = torch.exp2(_exponent(largest) - octaves).float()
        return -(2**octaves), 2**octaves, scale, torch.zeros_like(low, dtype=torch.int32)

    def simulate(self, x: Tensor) -> Tensor:
        fixed, levels = self._fix(x.detach())
        return torch.where(fixed, levels * per_slice(self.scale, x), x)

    def _fix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Put the largest weights that are not fixed yet on their levels, up to the share of this part of the training."""
        fixed, levels = self._state(x)
        wanted = round(PORTIONS[min(int(self.progress * len(PORTIONS)), len(PORTIONS) - 1)] * x.numel())
        if wanted > self.count:
            free = x.abs().masked_fill(fixed, -1.0).flatten()
            chosen = torch.zeros_like(free, dtype=torch.bool)
            chosen[free.topk(wanted - self.count).indices] = True
            chosen = chosen.reshape(x.shape)
            fixed, levels, self.count = fixed | chosen, torch.where(chosen, self._nearest(x), levels), wanted
        self.fixed, self.levels = fixed, levels
        return fixed, levels

    def _state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Which weights are fixed, and the integers of those."""
        if self.fixed is None or self.levels is None:
            return torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x)
        return self.fixed.to(x.device), self.levels.to(x.device)

    def _integers(self, x: Tensor) -> Tensor:
        return torch.where(*self._state(x), self._nearest(x.detach()))

    def _nearest(self, x: Tensor) -> Tensor:
        units = x.double().abs() / per_slice(self.scale, x)
        power = torch.exp2(_exponent(units).clamp(min=0)).clamp(max=self.qmax)
        return (torch.sign(x) * power * (units >= 0.5)).float()

    def get_extra_state(self) -> dict[str, Any]:
        return {"count": self.count, "fixed": self.fixed, "levels": self.levels}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.count, self.fixed, self.levels = state["count"], state["fixed"], state["levels"]


def _exponent(x: Tensor) -> Tensor:
    """floor(log2(4 x / 3)), exactly: the power of two that x rounds to."""
    return torch.frexp(4 * x / 3).exponent.double() - 1
