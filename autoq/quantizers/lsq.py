"""Learned step size quantization (LSQ)."""

from __future__ import annotations

import math

from torch import Tensor

from autoq.quantizers.base import LearnedScale
from autoq.quantizers.functional import fake_quantize_learned


class LSQ(LearnedScale):
    """A trained scale: LSQ (Esser et al. 2020), equations 1-3.

    v_hat = s * round(clip(v / s, -Q_N, Q_P)) with Q_N = zero_point - qmin and Q_P = qmax - zero_point. Unsigned data (zero
    point 0) and symmetric data are the paper's two cases. The range estimator gives the initial scale. The scale's gradient
    is multiplied by g = 1 / sqrt(N * Q_P) with N values per scale (section 2.2).
    """

    def simulate(self, x: Tensor) -> Tensor:
        scale = self.scale
        factor = 1.0 / math.sqrt(x.numel() / scale.numel() * self.qmax)
        return fake_quantize_learned(x, scale, self.zero_point, self.qmin, self.qmax, factor)
