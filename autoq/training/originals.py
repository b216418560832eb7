"""The end of a training: a network that is near to the float one learns from the originals of photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import median

from torch import Tensor
from torch.nn import functional as F

from autoq.graph.quantize import Quantized
from autoq.images.data import Pair, original_patches, training_patches
from autoq.images.pixels import LEVELS
from autoq.training.qat import Training, TrainingData

LARGER = 2
"""Sides of its patches, in those of the study's. Near a patch's edge a network lacks what lies beyond it, which the float network
lacks too, but an original does not: small patches teach it to make up for edges that whole images do not have."""

RATE = 1 / 40
"""Share of the learning rates. Originals hold what no network can make, so their gradient is noisy."""

SQUARES = 10.0
"""Weight of the squared error, with which its gradient is about as large as that of the distance to the float network."""


class OriginalsTraining(Training):
    """Training towards the originals, in a batch of as many pixels as the study's. Arguments: as `Training`.

    pairs: Images with originals.
    """

    def __init__(
        self, data: TrainingData, pairs: Sequence[Pair], quantized: Quantized, learning_rate: float, warm_up: int = 0
    ) -> None:
        spec = data.spec
        usual = median(min(pair.low.shape[:2]) for pair in pairs)
        factor = LARGER if usual >= LARGER * data.plan.side else 1  # images that are too small for a patch are left out
        side, batch = factor * data.plan.side, max(1, data.plan.batch // factor**2)
        plan = dataclasses.replace(data.plan, side=side, batch=batch, pool=min(data.plan.pool, spec.steps * batch))
        patches, originals = training_patches(pairs, plan), original_patches(pairs, plan, spec.scale)
        own = TrainingData(spec, plan, patches.to(spec.device), originals.to(spec.device))
        super().__init__(own, quantized, learning_rate, warm_up, exact=True)
        self.damping = RATE

    def distance(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        """Weighted squared error to the originals."""
        return SQUARES * F.mse_loss(outputs, self.data.teacher[chosen] / LEVELS)

    def damped(self, distance: float) -> float:
        """Share of the learning rates, whatever the distance."""
        return RATE

    def progress(self) -> float:
        """All: quantizers that change step by step have become what they become."""
        return 1.0
