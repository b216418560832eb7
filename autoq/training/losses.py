"""What a finetuning minimizes: what outputs are compared with, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from autoq.images.data import Pair, original_patches
from autoq.images.pixels import LEVELS
from autoq.training.qat import Loss, Training

FROM, TO = 0.6, 0.8
"""Shares of a training between which originals take the place of the float network's output. They hold what no network can make, so
their gradient is noisy: it needs the small learning rates of the end."""

SQUARES = 10.0
"""Weight of the squared error to originals, with which its gradient is about as large as that of the distance."""

TEXTURE = 0.5
"""Weight of the second term of `gradient` and `frequency`."""


def output(training: Training, pairs: Sequence[Pair]) -> Loss:
    """L1 to the float network's output."""
    return training.distance


def originals(training: Training, pairs: Sequence[Pair]) -> Loss:
    """L1 to the float network's output, and towards the end of a training the squared error to the originals in its place.

    The float network's output teaches fast, as it holds nothing that a network cannot make; only originals let a network become
    better than its teacher.
    """
    data = training.data
    high = original_patches(pairs, data.plan, data.spec.scale).to(data.spec.device)

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        share = min(1.0, max(0.0, (training.step / training.steps - FROM) / (TO - FROM)))
        squares = SQUARES * F.mse_loss(outputs, high[chosen] / LEVELS)
        return torch.lerp(training.distance(outputs, chosen), squares, share)

    return loss


def gradient(training: Training, pairs: Sequence[Pair]) -> Loss:
    """`output`, and L1 between the differences of neighbouring pixels, which are what texture consists of."""
    return _with_texture(training, lambda image: torch.cat([image.diff(dim=axis).flatten(1) for axis in (2, 3)], 1))


def frequency(training: Training, pairs: Sequence[Pair]) -> Loss:
    """`output`, and L1 between the magnitudes of the Fourier coefficients, wherever a texture lies in the patch."""
    return _with_texture(training, lambda image: torch.fft.rfft2(image, norm="ortho").abs())


def _with_texture(training: Training, texture: Callable[[Tensor], Tensor]) -> Loss:
    teacher = training.data.teacher

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        return training.distance(outputs, chosen) + TEXTURE * F.l1_loss(texture(outputs), texture(teacher[chosen]))

    return loss


LOSSES: dict[str, Callable[[Training, Sequence[Pair]], Loss]] = {
    "output": output,
    "originals": originals,
    "gradient": gradient,
    "frequency": frequency,
}
"""Makes the loss of a training on patches of these images, by name; `originals` wants images that have originals."""
