"""WDSR-A (Yu et al. 2018, section 3): wide features before each activation; weight norm is folded into the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoq.networks.edsr import MEAN


class WideBlock(nn.Module):
    """x + conv(relu(conv(x))), `expansion` times wider before the activation."""

    def __init__(self, features: int, expansion: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features * expansion, 3, padding=1)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(features * expansion, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv2(self.act(self.conv1(x)))
        return x + branch


class WDSR(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w]; the defaults are the authors' baseline.

    Args:
        scale: 2, 3 or 4.
        blocks: Number of blocks.
        features: Number of channels.
        expansion: Expansion of the channels before each activation.
        centred: Subtract the mean of DIV2K from the image, as published weights expect. The last layer's bias adds it back.
    """

    mean: Tensor

    def __init__(self, scale: int = 4, blocks: int = 16, features: int = 32, expansion: int = 4, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1), persistent=centred)
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*(WideBlock(features, expansion) for _ in range(blocks)))
        self.tail = nn.Conv2d(features, 3 * scale**2, 3, padding=1)
        self.skip = nn.Conv2d(3, 3 * scale**2, 5, padding=2)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.centred:
            x = x - self.mean
        upscaled: Tensor = self.shuffle(self.tail(self.body(self.head(x))) + self.skip(x))
        return upscaled
