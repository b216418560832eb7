"""XLSR (Ayazoglu 2021, figure 2): group convolutions, one concatenation, and an output clipped to [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupBlock(nn.Module):
    """A 3x3 group convolution, ReLU, and a 1x1 convolution that mixes the groups (figure 3)."""

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, groups=groups)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.conv2(self.act(self.conv1(x)))
        return mixed


class XLSR(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w], with the output clipped to [0, 1] as in the paper (equation 2)."""

    def __init__(self, scale: int = 3, blocks: int = 3, features: int = 32, groups: int = 4, clipped: bool = True) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1), nn.ReLU())
        self.skip = nn.Conv2d(3, features // 2, 3, padding=1)
        self.mix = nn.Conv2d(features, features, 1)
        self.body = nn.Sequential(*(GroupBlock(features, groups) for _ in range(blocks)))
        self.fuse = nn.Sequential(nn.Conv2d(features + features // 2, features, 1), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        if clipped:
            self.tail.append(nn.Hardtanh(0.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.body(self.mix(self.head(x)))
        upscaled: Tensor = self.tail(self.fuse(torch.cat([trunk, self.skip(x)], 1)))
        return upscaled
