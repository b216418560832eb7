"""What a finetuning minimizes: what outputs are compared with, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from autoq.images.data import Pair, original_patches
from autoq.images.pixels import LEVELS
from autoq.training.qat import Loss, Training

CAUTION = 1.5
"""Power of the damping of the learning rates with originals. They hold what no network can make, so their gradient is noisy, and
what is nearly as good as float loses more by a large step than a small one: an 8-bit SRResNet x4 is below its start for hundreds
of steps at the rates that serve the float network's output."""

TEXTURE = 0.5
"""Weight of the second term of `gradient` and `frequency`."""


def output(training: Training, pairs: Sequence[Pair]) -> Loss:
    """L1 to the float network's output."""
    return training.distance


def originals(training: Training, pairs: Sequence[Pair]) -> Loss:
    """The squared error to a target that moves from the float network's output to the original in the first half of a training.

    target = (1 - t) y + t x for the float network's output y and the original x, with t from 0 to 1. The float network's output
    teaches fast, as it holds nothing that a network cannot make; only originals let a network become better than its teacher.
    """
    data = training.data
    high = original_patches(pairs, data.plan, data.spec.scale).to(data.spec.device)
    training.caution = CAUTION

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        share = min(1.0, 2 * training.step / training.steps)
        return F.mse_loss(outputs, torch.lerp(data.teacher[chosen], high[chosen] / LEVELS, share))

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
