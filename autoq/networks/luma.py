"""Apply luma-only networks to colour images: chroma is upscaled by bicubic interpolation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LUMA, OFFSET = (65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255
"""ITU-R BT.601: RGB in [0, 1] to Y in [16, 235] / 255."""


class OnLuma(nn.Module):
    """RGB in [0, 1], [n, 3, h, w] -> [n, 3, scale h, scale w] with a network for Y.

    The image is upscaled by bicubic interpolation. The difference between the network's Y and the interpolated Y is added to
    all three channels, which is equivalent to keeping the interpolated chroma. In BT.601 a difference in Y corresponds to
    255 / 219 in each channel.
    """

    to_luma: Tensor
    offset: Tensor
    to_colours: Tensor

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.register_buffer("to_luma", torch.tensor(LUMA).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("offset", torch.tensor([OFFSET]), persistent=False)
        self.register_buffer("to_colours", torch.full((3, 1, 1, 1), 255 / 219), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        colours = F.interpolate(x, scale_factor=float(self.scale), mode="bicubic", align_corners=False)
        upscaled = self.network(F.conv2d(x, self.to_luma, self.offset))
        gain = upscaled - F.conv2d(colours, self.to_luma, self.offset)
        return colours + F.conv2d(gain, self.to_colours)
