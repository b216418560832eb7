"""Adversarial training of SRGAN and ESRGAN: discriminator, adversarial losses, and feature loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from autoq.system.compat import allow_torchvision

PIXEL_WEIGHT, FEATURE_WEIGHT, ADVERSARIAL_WEIGHT = 1.0, 0.3, 0.01
VGG19_FILE = "vgg19-dcbb9e9d.pth"
VGG19_LAYERS = 35
"""VGG19 up to conv5_4 before its activation (Wang et al. 2018, section 3.3)."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Discriminator(nn.Module):
    """Patch discriminator: RGB [n, 3, h, w] -> scores [n, 1, h / 8, w / 8] and intermediate features.

    Spectral normalization (Miyato et al. 2018) stabilizes the training.
    """

    def __init__(self, features: int = 48) -> None:
        super().__init__()
        layers = []
        before = 3
        for number in range(4):
            after = features * 2 ** min(number, 2)
            kernel, stride = (4, 2) if number else (3, 1)
            layers.append(spectral_norm(nn.Conv2d(before, after, kernel, stride, padding=1)))
            before = after
        self.layers = nn.ModuleList(layers)
        self.score = spectral_norm(nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


def feature_distance(output: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Mean L1 distance between two lists of features."""
    return torch.stack([F.l1_loss(a.float(), b.float()) for a, b in zip(output, target, strict=True)]).mean()


def judge_loss(kind: Literal["hinge", "relativistic"], real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator loss: hinge (Lim and Ye 2017), or relativistic average (Wang et al. 2018, equation 1)."""
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return (_cross_entropy(real - fake.mean(), True) + _cross_entropy(fake - real.mean(), False)) / 2


def generator_loss(kind: Literal["hinge", "relativistic"], real: Tensor, fake: Tensor) -> Tensor:
    """Adversarial loss of the generator, from the discriminator's scores (Wang et al. 2018, equation 2)."""
    if kind == "hinge":
        return -fake.mean()
    return (_cross_entropy(real - fake.mean(), False) + _cross_entropy(fake - real.mean(), True)) / 2


def _cross_entropy(scores: Tensor, expected: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(expected)))


def vgg19_file() -> Path:
    """The path of torchvision's VGG19 weights, which may be missing."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG19_FILE


class VGGFeatures(nn.Module):
    """VGG19 features of RGB in [0, 1]. Needs torchvision's weights at `vgg19_file()`."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        allow_torchvision()
        from torchvision.models import vgg19

        with torch.device("meta"):
            network = vgg19()
        network.load_state_dict(torch.load(vgg19_file(), map_location="cpu", weights_only=True), assign=True)
        self.layers = network.features[:VGG19_LAYERS].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers((x - self.mean) / self.std)]
