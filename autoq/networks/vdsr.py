"""VDSR (Kim et al. 2016, figure 2): twenty convolutions predict the residual of a bicubically upscaled image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autoq.networks.luma import OnLuma


class VDSR(nn.Module):
    """[n, channels, h, w] in [0, 1] -> [n, channels, scale h, scale w]. The paper's network has 1 channel (luma)."""

    def __init__(self, scale: int = 3, channels: int = 3, layers: int = 20, features: int = 64) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(channels, features, 3, padding=1), nn.ReLU())
        body: list[nn.Module] = []
        for _ in range(layers - 2):
            body += [nn.Conv2d(features, features, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.tail = nn.Conv2d(features, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=float(self.scale), mode="bicubic", align_corners=False)
        detail: Tensor = self.tail(self.body(self.head(x)))
        return x + detail


def luma_vdsr(scale: int = 3) -> OnLuma:
    """The paper's network, which upscales luma only."""
    return OnLuma(VDSR(scale, channels=1), scale)
