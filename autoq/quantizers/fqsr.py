"""Learned intervals of Fully Quantized SR (FQSR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoq.config.policy import TensorQuant
from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import Grid, fake_quantize, fake_quantize_learned, positive, positive_grid, symmetric_grid

WARM_UP = 20
"""Training iterations in which the interval is the running mean of the maxima."""


class FQSR(LearnedScale):
    """A trained interval I: Fully Quantized SR (Wang et al. 2021), equations 3 and 4.

    Q(v) = round(clip(v / I, Q_min, 1) * N) * I / N, with Q_min = 0 for unsigned and -1 for signed data. The paper has
    N = 2^b - 1 in both cases; signed data would then have 2^(b+1) - 1 levels, too many for b bits, so here N = 2^(b-1) - 1
    for signed data. Zero is the middle of a signed interval or the lower end of an unsigned one. Data are signed if the
    format is signed or the range includes negative values; an unsigned format then uses the zero point 2^(b-1) - 1.

    The range estimator gives I before training. In the first 20 training iterations I is the mean of the maxima seen so far
    (of magnitudes for signed data; equation 4) and is not trained. After that, I is trained with the gradient of everything
    except the rounding: Q_min or 1 if v is clipped, otherwise (Q(v) - v) / I.
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
        """Equation 4: set the interval to the mean of the maxima seen so far."""
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
