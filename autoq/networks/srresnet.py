"""SRResNet, the generator of SRGAN (Ledig et al. 2017, figure 4), and its public 5-block variant."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Convolution, BN, PReLU, convolution, BN, and a skip connection."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(features)
        self.act = nn.PReLU()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return x + branch


class SRResNet(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w].

    Args:
        scale: 2 or 4.
        blocks: Number of residual blocks.
        features: Number of channels.
        fuse: Layer after the last convolution of the body: `bn` (Ledig) or `prelu` (the public 5-block SRGAN).
        output: `linear`, or `tanh` for (tanh(x) + 1) / 2.
    """

    def __init__(
        self,
        scale: int = 4,
        blocks: int = 16,
        features: int = 64,
        fuse: Literal["bn", "prelu"] = "bn",
        output: Literal["linear", "tanh"] = "linear",
    ) -> None:
        super().__init__()
        self.output = output
        self.head = nn.Sequential(nn.Conv2d(3, features, 9, padding=4), nn.PReLU())
        self.body = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))
        closing = nn.BatchNorm2d(features) if fuse == "bn" else nn.PReLU()
        self.fuse = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), closing)
        up: list[nn.Module] = []
        for _ in range({2: 1, 4: 2}[scale]):
            up += [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.up = nn.Sequential(*up)
        self.tail = nn.Conv2d(features, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = self.tail(self.up(x + self.fuse(self.body(x))))
        if self.output == "tanh":
            x = (torch.tanh(x) + 1) / 2
        return x
