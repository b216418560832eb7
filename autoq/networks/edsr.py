"""EDSR (Lim et al. 2017): residual blocks without batch norm. Baseline: 16 blocks, 64 features; full: 32 blocks, 256 features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoq.networks.residual import ResidualBlock, shuffling

MEAN = (0.4488, 0.4371, 0.4040)
"""Mean RGB of DIV2K, which the authors' network subtracts from the image."""


class EDSR(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w].

    Args:
        scale: 2, 3 or 4.
        blocks: Number of residual blocks.
        features: Number of channels.
        scaling: Residual scaling (0.1 in the full network).
        centred: Subtract the mean of DIV2K from the image, as the published weights expect. The last layer's bias adds it
            back.
    """

    mean: Tensor

    def __init__(self, scale: int = 4, blocks: int = 16, features: int = 64, scaling: float = 1.0, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1), persistent=centred)
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(features, scaling) for _ in range(blocks)))
        self.fuse = nn.Conv2d(features, features, 3, padding=1)
        self.up = shuffling(features, scale)
        self.tail = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean if self.centred else x)
        upscaled: Tensor = self.tail(self.up(x + self.fuse(self.body(x))))
        return upscaled
