"""Incremental network quantization (INQ) to powers of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import Quantizer
from autoq.quantizers.functional import LARGEST_SCALE, SMALLEST_SCALE, Grid, per_slice

PORTIONS = (0.5, 0.75, 0.875)
"""Share of the weights that is fixed in each third of the training; after training all weights are fixed."""


class INQ(Quantizer):
    """Zero and powers of two, with weights fixed in groups: INQ (Zhou et al. 2017), equations 1-4.

    The levels are 0, +-2^n2, ..., +-2^n1 with n1 = floor(log2(4 s / 3)), n2 = n1 + 1 - 2^(b-1) / 2 and s = max |W| from the
    range estimator at calibration. The threshold between neighbouring levels a < c is (a + c) / 2. In units of 2^n2 the
    levels are the integers 0, +-1, +-2, +-4, ..., which take 5 bits for widths of up to 4 and 9 bits for 5. During training
    the largest 50 % of the weights are fixed to their levels, then 75 % and 87.5 %; the others remain float and are trained
    (equation 7).
    """

    elementwise = False

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
        """Fix the largest free weights to their levels, up to the share of this third of the training."""
        fixed, levels = self._state(x)
        target = round(PORTIONS[min(int(self.progress * len(PORTIONS)), len(PORTIONS) - 1)] * x.numel())
        if target > self.count:
            free = x.abs().masked_fill(fixed, -1.0).flatten()
            chosen = torch.zeros_like(free, dtype=torch.bool)
            chosen[free.topk(target - self.count).indices] = True
            chosen = chosen.reshape(x.shape)
            fixed, levels, self.count = fixed | chosen, torch.where(chosen, self._nearest(x), levels), target
        self.fixed, self.levels = fixed, levels
        return fixed, levels

    def _state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mask of the fixed weights, their integers)."""
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
    """floor(log2(4 x / 3)) without rounding errors: the exponent of the power of two that x rounds to."""
    return torch.frexp(4 * x / 3).exponent.double() - 1
