"""IMDN (Hui et al. 2019, figures 2 and 3): information multi-distillation, with contrast-aware channel attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLOPE = 0.05
TINY = 1e-12
"""Keeps the gradient of the standard deviation finite for a constant channel."""


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention: weights in [0, 1] from each channel's mean and standard deviation (figure 4)."""

    def __init__(self, features: int, reduction: int = 16) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Conv2d(features, features // reduction, 1), nn.ReLU(), nn.Conv2d(features // reduction, features, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        contrast = torch.sqrt((x - mean).square().mean((2, 3), keepdim=True) + TINY)
        weighted: Tensor = x * self.weigh(contrast + mean)
        return weighted


class DistillationBlock(nn.Module):
    """Three steps each keep a quarter of the channels and refine the rest; attention and a 1x1 convolution fuse the kept ones."""

    def __init__(self, features: int) -> None:
        super().__init__()
        kept = features // 4
        self.split = [kept, features - kept]
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features - kept, features, 3, padding=1)
        self.conv3 = nn.Conv2d(features - kept, features, 3, padding=1)
        self.conv4 = nn.Conv2d(features - kept, kept, 3, padding=1)
        self.act = nn.LeakyReLU(SLOPE)
        self.attention = ContrastAttention(4 * kept)
        self.mix = nn.Conv2d(4 * kept, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept1, rest = torch.split(self.act(self.conv1(x)), self.split, 1)
        kept2, rest = torch.split(self.act(self.conv2(rest)), self.split, 1)
        kept3, rest = torch.split(self.act(self.conv3(rest)), self.split, 1)
        kept = torch.cat([kept1, kept2, kept3, self.conv4(rest)], 1)
        mixed: Tensor = self.mix(self.attention(kept)) + x
        return mixed


class IMDN(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w]."""

    def __init__(self, scale: int = 4, blocks: int = 6, features: int = 64) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.ModuleList(DistillationBlock(features) for _ in range(blocks))
        self.collect = nn.Sequential(nn.Conv2d(features * blocks, features, 1), nn.LeakyReLU(SLOPE))
        self.fuse = nn.Conv2d(features, features, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        outputs, trunk = [], x
        for block in self.body:
            trunk = block(trunk)
            outputs.append(trunk)
        upscaled: Tensor = self.up(self.fuse(self.collect(torch.cat(outputs, 1))) + x)
        return upscaled
