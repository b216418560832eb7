"""Residual block without batch norm, and pixel-shuffle upsampling, for EDSR and MSRResNet."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + scaling * conv(relu(conv(x))): Lim et al. 2017, figure 2 (c) and section 3.3."""

    def __init__(self, features: int, scaling: float = 1.0) -> None:
        super().__init__()
        self.scaling = scaling
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv2(self.act(self.conv1(x)))
        return x + (branch if self.scaling == 1 else branch * self.scaling)


def shuffling(features: int, scale: int) -> nn.Sequential:
    """Convolutions and pixel shuffles that upscale by 2, 3 or 4 (twice by 2)."""
    layers: list[nn.Module] = []
    for factor in {2: (2,), 3: (3,), 4: (2, 2)}[scale]:
        layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)
