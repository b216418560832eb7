"""ESPCN (Shi et al. 2016, section 3): three convolutions at low resolution and a pixel shuffle."""

from __future__ import annotations

from torch import Tensor, nn

from autoq.networks.luma import OnLuma


class ESPCN(nn.Module):
    """[n, channels, h, w] in [0, 1] -> [n, channels, scale h, scale w]. The paper's network has 1 channel (luma)."""

    def __init__(self, scale: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(channels, 64, 5, padding=2), nn.Tanh())
        self.body = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.Tanh())
        self.tail = nn.Sequential(nn.Conv2d(32, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        upscaled: Tensor = self.tail(self.body(self.head(x)))
        return upscaled


def luma_espcn(scale: int = 3) -> OnLuma:
    """The paper's network, which upscales luma only."""
    return OnLuma(ESPCN(scale, channels=1), scale)
