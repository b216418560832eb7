"""Learned intervals of fully quantized super-resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import Grid, fake_quantize, fake_quantize_learned, positive, positive_grid, symmetric_grid

WARM_UP = 20
"""Training iterations over which the interval is the mean of the maxima so far."""


class FQSR(LearnedScale):
    """The interval I is trained: Fully Quantized SR (Wang et al. 2021), equations 3 and 4.

    Q(v) = round(clip(v / I, Q_min, 1) * N) * I / N, with Q_min = 0 for unsigned data and -1 for signed. The paper writes
    N = 2^b - 1 for both; signed data would then have 2^(b+1) - 1 levels, which b bits do not hold, so N is 2^(b-1) - 1
    for them. There is no zero point: zero is the middle of a signed interval and the end of an unsigned one. Data are
    signed where the format is, or where the range has negative values; an unsigned format then holds them around 2^(b-1) - 1.

    I starts as the mean of the maxima (of magnitudes, for signed data) of the first 20 training iterations (equation 4),
    while it is used as it stands; the clipping rule gives it until training begins. Then it is trained; its gradient
    differentiates all but the rounding: Q_min or 1 where v is clipped, else (Q(v) - v) / I.
    """

    maxima: Tensor

    def __init__(self, quant: TensorQuant, low: Tensor, high: Tensor) -> None:
        super().__init__(quant, low, high)
        self.seen = 0
        self.symmetric = self._symmetric(low)
        self.register_buffer("maxima", torch.zeros_like(self.initial_scale))

    def start(self, low: Tensor, high: Tensor) -> Grid:
        bits, signed = self.quant.bits, self.quant.signed
        return symmetric_grid(low, high, bits, signed) if self._symmetric(low) else positive_grid(high, bits)

    def _symmetric(self, low: Tensor) -> bool:
        """Whether the data are signed."""
        return self.quant.signed or bool((low < 0).any())

    def simulate(self, x: Tensor) -> Tensor:
        if self.seen < WARM_UP:
            self._warm_up(x.detach())
            return fake_quantize(x, self.scale.detach(), self.zero_point, self.qmin, self.qmax)
        return fake_quantize_learned(x, self.scale, self.zero_point, self.qmin, self.qmax, 1.0)

    def _warm_up(self, x: Tensor) -> None:
        """Equation 4: the interval is the mean of the maxima seen."""
        symmetric = self.symmetric
        values = (x.abs() if symmetric else x).reshape(self.maxima.numel(), -1)
        self.seen += 1
        self.maxima = self.maxima + values.amax(1)
        steps = (self.qmax - self.qmin) // 2 if symmetric else self.qmax
        self.initial_scale = positive(self.maxima / self.seen / steps)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen, "symmetric": self.symmetric, "qmax": self.qmax}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen, self.symmetric, self.qmax = state["seen"], state["symmetric"], state["qmax"]
