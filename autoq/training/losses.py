"""What a finetuning minimizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from autoq.training.qat import Loss, Training

TEXTURE = 0.5
"""Weight of the second term of `gradient` and `frequency`."""


def output(training: Training) -> Loss:
    """L1 to the float network's output."""
    return training.distance


def gradient(training: Training) -> Loss:
    """`output`, and L1 between the differences of neighbouring pixels, which are what texture consists of."""
    return _with_texture(training, lambda image: torch.cat([image.diff(dim=axis).flatten(1) for axis in (2, 3)], 1))


def frequency(training: Training) -> Loss:
    """`output`, and L1 between the magnitudes of the Fourier coefficients, wherever a texture lies in the patch."""
    return _with_texture(training, lambda image: torch.fft.rfft2(image, norm="ortho").abs())


def _with_texture(training: Training, texture: Callable[[Tensor], Tensor]) -> Loss:
    teacher = training.data.teacher

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        return training.distance(outputs, chosen) + TEXTURE * F.l1_loss(texture(outputs), texture(teacher[chosen]))

    return loss


LOSSES: dict[str, Callable[[Training], Loss]] = {
    "output": output,
    "originals": output,
    "gradient": gradient,
    "frequency": frequency,
}
"""Makes a training's loss, by name. `originals`: that of the steps before those of `OriginalsTraining`."""
