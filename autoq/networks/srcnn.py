"""SRCNN (Dong et al. 2014, section 3): three convolutions on a bicubically upscaled image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autoq.networks.luma import OnLuma


class SRCNN(nn.Module):
    """[n, channels, h, w] in [0, 1] -> [n, channels, scale h, scale w]: the 9-1-5 network of 64 and 32 features."""

    def __init__(self, scale: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(channels, 64, 9, padding=4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(64, 32, 1), nn.ReLU())
        self.tail = nn.Conv2d(32, channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=float(self.scale), mode="bicubic", align_corners=False)
        upscaled: Tensor = self.tail(self.body(self.head(x)))
        return upscaled


def luma_srcnn(scale: int = 3) -> OnLuma:
    """The paper's network, which upscales luma only."""
    return OnLuma(SRCNN(scale, channels=1), scale)
