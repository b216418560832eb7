"""RRDBNet, the generator of ESRGAN (Wang et al. 2018, figures 3 and 4): residual-in-residual dense blocks, no batch norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL_SCALING = 0.2
SLOPE = 0.2


class DenseBlock(nn.Module):
    """Five densely connected convolutions; the scaled output of the last one is added to the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.act(self.conv1(x))
        x2 = self.act(self.conv2(torch.cat([x, x1], 1)))
        x3 = self.act(self.conv3(torch.cat([x, x1, x2], 1)))
        x4 = self.act(self.conv4(torch.cat([x, x1, x2, x3], 1)))
        residual: Tensor = self.conv5(torch.cat([x, x1, x2, x3, x4], 1))
        return x + RESIDUAL_SCALING * residual


class RRDB(nn.Module):
    """Three dense blocks whose scaled output is added to the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.blocks(x)
        return x + RESIDUAL_SCALING * residual


class ESRGAN(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, 4 h, 4 w]."""

    def __init__(self, scale: int = 4, blocks: int = 23, features: int = 64, growth: int = 32) -> None:
        super().__init__()
        assert scale == 4
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.fuse = nn.Conv2d(features, features, 3, padding=1)
        self.up1 = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.up2 = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.tail = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(features, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = x + self.fuse(self.body(x))
        x = self.up1(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.up2(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        upscaled: Tensor = self.tail(x)
        return upscaled
