"""MSRResNet, the ESRGAN authors' SRResNet without batch norm (Wang et al. 2018; BasicSR), with a bilinear global skip."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autoq.networks.residual import ResidualBlock


class MSRResNet(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w]."""

    def __init__(self, scale: int = 4, blocks: int = 16, features: int = 64) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1), nn.LeakyReLU(0.1))
        self.body = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))
        up: list[nn.Module] = []
        for factor in {2: (2,), 3: (3,), 4: (2, 2)}[scale]:
            up += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor), nn.LeakyReLU(0.1)]
        self.up = nn.Sequential(*up)
        self.tail = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(features, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        base = F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        detail: Tensor = self.tail(self.up(self.body(self.head(x))))
        return base + detail
