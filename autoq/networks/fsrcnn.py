"""FSRCNN (Dong et al. 2016, figure 2): shrinking, mapping, expanding, and upscaling by a transposed convolution."""

from __future__ import annotations

from torch import Tensor, nn

from autoq.networks.luma import OnLuma


class FSRCNN(nn.Module):
    """[n, channels, h, w] in [0, 1] -> [n, channels, scale h, scale w]: FSRCNN(features, shrunk, maps) of the paper.

    The paper's network has 1 channel (luma).
    """

    def __init__(self, scale: int = 3, channels: int = 3, features: int = 56, shrunk: int = 12, maps: int = 4) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(channels, features, 5, padding=2), nn.PReLU(features))
        self.shrink = nn.Sequential(nn.Conv2d(features, shrunk, 1), nn.PReLU(shrunk))
        mapping: list[nn.Module] = []
        for _ in range(maps):
            mapping += [nn.Conv2d(shrunk, shrunk, 3, padding=1), nn.PReLU(shrunk)]
        self.map = nn.Sequential(*mapping)
        self.expand = nn.Sequential(nn.Conv2d(shrunk, features, 1), nn.PReLU(features))
        self.tail = nn.ConvTranspose2d(features, channels, 9, stride=scale, padding=4, output_padding=scale - 1)

    def forward(self, x: Tensor) -> Tensor:
        upscaled: Tensor = self.tail(self.expand(self.map(self.shrink(self.head(x)))))
        return upscaled


def luma_fsrcnn(scale: int = 3) -> OnLuma:
    """The paper's network, which upscales luma only."""
    return OnLuma(FSRCNN(scale, channels=1), scale)
