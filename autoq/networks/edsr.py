"""EDSR (Lim et al. 2017): residual blocks without batch norm; the baseline has 16 of 64 features, the full one 32 of 256."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoq.networks.residual import ResidualBlock, shuffling

MEAN = (0.4488, 0.4371, 0.4040)
"""Of DIV2K's RGB, which the authors' weights expect to be taken off."""


class EDSR(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w].

    scaling: of each residual (0.1 in the full network). centred: the mean of DIV2K is taken off the image first, as
    the published weights want it; the last layer's bias adds it again.
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
