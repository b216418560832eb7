"""What a finetuning minimizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoq.graph.trace import computing, stage_ends
from autoq.system.device import channels_last
from autoq.training.qat import Loss, Training

SECOND = 0.5
"""Weight of the second term of `gradient`, `frequency` and `features`, with which it is about as large as the first."""


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
        return training.distance(outputs, chosen) + SECOND * F.l1_loss(texture(outputs), texture(teacher[chosen]))

    return loss


def features(training: Training) -> Loss:
    """`output`, and the structured knowledge transfer of PAMS (Li et al. 2020) at the ends of the stages.

    A stage ends with what the first layer of the next one reads. Its map is the sum of squares over all channels, [batch, h w],
    divided by its L2 norm; the second term is the L2 distance between the maps of both networks, averaged over patches and ends.
    Ends that the policy leaves in float are not compared.
    """
    traced, module = training.quantized.plan.traced, training.module
    ends = stage_ends(traced)
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(quantizer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if quantizer.training:
                found[name] = inputs[0]

        return hook

    sources = {placed.placement.source: placed.quantizer for placed in training.quantized.placed}
    names = [name for name in ends if name in sources]
    for name in names:
        module.get_submodule(sources[name]).register_forward_pre_hook(keep(name))
    teacher = channels_last(computing(traced, names).to(training.data.spec.device))

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        total = training.distance(outputs, chosen)
        if not names:
            return total
        with torch.no_grad():
            expected = teacher(training.data.patches[chosen].contiguous(memory_format=torch.channels_last))
        distances = [_map(found[name]) - _map(exact) for name, exact in zip(names, expected, strict=True)]
        found.clear()
        return total + SECOND * torch.stack([distance.norm(dim=1).mean() for distance in distances]).mean()

    return loss


def _map(tensor: Tensor) -> Tensor:
    return F.normalize(tensor.float().square().sum(1).flatten(1), dim=1)


LOSSES: dict[str, Callable[[Training], Loss]] = {
    "output": output,
    "originals": output,
    "gradient": gradient,
    "frequency": frequency,
    "features": features,
}
"""Makes a training's loss, by name. `originals`: that of the steps before those of `OriginalsTraining`."""
